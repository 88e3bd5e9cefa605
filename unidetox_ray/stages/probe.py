"""Measuring a model in the middle of its training: toxicity on validation prompts, in the training worker itself."""

from __future__ import annotations

import time
from typing import Any

import polars as pl

from unidetox_ray.families.runners import forget_runner
from unidetox_ray.schemas import SCORES, frame
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages.continuations import continuations
from unidetox_ray.stages.scorers import open_scorer

_SCORERS: dict[str, Any] = {}


def measure(model: Any, tokenizer: Any, probe: dict[str, Any], device: str) -> dict[str, Any]:
    """tp_/emt_ of id, ood and all (macro means over domains), and clean_ppl where clean text is given.

    probe: evaluate (plain values), prompts and clean (parquet paths), scorer (stages.scorers spec), decode_rows, score_tokens.
    A judgement that failed makes its prompt's statistic unknown; more than evaluate.max_failed_share of them is an error.
    """
    from unidetox_ray.metrics.perplexity import pooled_ppl, text_nll
    from unidetox_ray.metrics.toxicity import toxicity_summary

    started = time.perf_counter()
    evaluate = EvaluateSection(**probe["evaluate"])
    prompts = pl.read_parquet(probe["prompts"])
    pairs = list(zip(prompts["prompt_id"].to_list(), prompts["prompt"].to_list(), strict=True))
    forget_runner(model)  # a trainer may change weights behind torch's back
    try:
        rows = continuations(
            model, tokenizer, pairs, evaluate, cell="probe", run=0, decode_rows=probe["decode_rows"]
        )
    finally:
        forget_runner(model)  # its caches are memory that the training needs
    spec = probe["scorer"]
    key = repr(sorted(spec.items(), key=lambda item: item[0]))
    if key not in _SCORERS:
        _SCORERS[key] = open_scorer(spec, device)
    usable = [row for row in rows if row["text"] is not None]
    scores = _SCORERS[key].score([row["text"] for row in usable], token_budget=probe["score_tokens"])
    fixed = {"metric": "toxicity", "scorer": spec["name"], "weight": 1.0}
    judged = [{**row, **fixed, "value": score} for row, score in zip(usable, scores, strict=True)]
    table = frame([{name: row[name] for name in SCORES} for row in judged], SCORES)
    failed = len(rows) - (table.height - table["value"].null_count())
    if failed > evaluate.max_failed_share * len(rows):
        raise ValueError(f"{failed} of {len(rows)} judgements failed; the trial cannot be compared")
    values: dict[str, Any] = dict(toxicity_summary(table, prompts, threshold=evaluate.threshold))
    if probe["clean"] is not None:
        clean = pl.read_parquet(probe["clean"])
        nll, counts = text_nll(
            model,
            tokenizer,
            clean["text"].to_list(),
            bos=True,
            token_budget=probe["score_tokens"],
            max_length=evaluate.clean_max_length,
        )
        scored = [(value, count) for value, count in zip(nll, counts, strict=True) if value is not None]
        values["clean_ppl"] = pooled_ppl([value for value, _ in scored], [count for _, count in scored])
    return {**values, "failed": failed, "probe_seconds": round(time.perf_counter() - started, 3)}
