"""Measuring a model in the middle of its training: toxicity on validation prompts, in the training worker itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import write_parquet
from unidetox_ray.schemas import PROBED, SCORES, frame
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages.continuations import continuations
from unidetox_ray.stages.opening import forget_runners
from unidetox_ray.stages.scorers import open_scorer

_SCORERS: dict[str, Any] = {}


def values_file(folder: Path, step: int | None = None) -> Path:
    """Where the values of single prompts and texts are kept, after a training's `step` or of a model that is not trained."""
    return folder / ("values.parquet" if step is None else f"values-{step}.parquet")


def measure(
    model: Any, tokenizer: Any, probe: dict[str, Any], device: str, *, step: int | None = None
) -> dict[str, Any]:
    """tp_/emt_ of id, ood and all (macro means over domains), and clean_ppl where clean text is given.

    probe: evaluate (plain values), prompts and clean (parquet paths), scorer (stages.scorers spec), decode_rows, score_tokens,
    and keep, where given: the folder that `values_file` is written into, which intervals are drawn from.
    A judgement that failed makes its prompt's statistic unknown; more than evaluate.max_failed_share of them is an error.
    So are, where values are kept, clean texts without a finite likelihood.
    """
    from unidetox_ray.metrics.perplexity import pooled_ppl, text_nll
    from unidetox_ray.metrics.toxicity import toxicity_summary

    started = time.perf_counter()
    evaluate = EvaluateSection(**probe["evaluate"])
    prompts = pl.read_parquet(probe["prompts"])
    pairs = list(zip(prompts["prompt_id"].to_list(), prompts["prompt"].to_list(), strict=True))
    forget_runners(model)  # a trainer may change weights behind torch's back
    try:
        rows = continuations(
            model, tokenizer, pairs, evaluate, cell="probe", run=0, decode_rows=probe["decode_rows"]
        )
    finally:
        forget_runners(model)  # their caches are memory that the training needs
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
    kept = _toxicity_values(table, prompts, evaluate.threshold) if probe.get("keep") else []
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
        if probe.get("keep"):
            kept += _clean_values(clean["text_id"].to_list(), nll, counts, evaluate.max_failed_share)
    if probe.get("keep"):
        write_parquet(values_file(Path(probe["keep"]), step), frame(kept, PROBED))
    return {**values, "failed": failed, "probe_seconds": round(time.perf_counter() - started, 3)}


def _toxicity_values(scores: pl.DataFrame, prompts: pl.DataFrame, threshold: float) -> list[dict[str, Any]]:
    """Rows of PROBED: tp and emt of each prompt, null where it has no score."""
    from unidetox_ray.metrics.toxicity import cluster_table, prompt_statistics

    clusters = cluster_table(prompts)
    found = prompt_statistics(scores, clusters, threshold=threshold).join(clusters, on="cluster")
    return [
        {"item": row["prompt_id"], "metric": name, "value": row[name], "weight": 1.0}
        for row in found.to_dicts()
        for name in ("tp", "emt")
    ]


def _clean_values(
    names: Sequence[str], nll: Sequence[float | None], counts: Sequence[int], max_failed_share: float
) -> list[dict[str, Any]]:
    """Rows of PROBED: the likelihood of each clean text. ValueError when too many have none that is finite."""
    asked = sum(count > 0 for count in counts)  # a text without a token to score is nobody's failure
    lost = sum(value is None and count > 0 for value, count in zip(nll, counts, strict=True))
    if lost > max_failed_share * asked:
        raise ValueError(f"{lost} of {asked} clean texts have no finite likelihood; the model has diverged")
    return [
        {"item": name, "metric": "clean_nll", "value": value, "weight": float(count)}
        for name, value, count in zip(names, nll, counts, strict=True)
        if value is not None
    ]
