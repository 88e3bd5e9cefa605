"""Measuring a model in the middle of its training: toxicity on validation prompts, in the training worker itself."""

from __future__ import annotations

import math
import time
from typing import Any

import polars as pl

from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages.continuations import continuations
from unidetox_ray.stages.scorers import open_scorer

_SCORERS: dict[str, Any] = {}


def measure(model: Any, tokenizer: Any, probe: dict[str, Any], device: str) -> dict[str, Any]:
    """tp_/emt_ of id, ood and all (macro means over domains), and clean_ppl where clean text is given.

    probe: evaluate (plain values), prompts and clean (parquet paths), scorer (stages.scorers spec), decode_rows, score_tokens.
    A judgement that failed makes its prompt's statistic unknown; more than evaluate.max_failed_share of them is an error.
    """
    from unidetox_ray.metrics.perplexity import text_nll

    started = time.perf_counter()
    evaluate = EvaluateSection(**probe["evaluate"])
    prompts = pl.read_parquet(probe["prompts"])
    pairs = list(zip(prompts["prompt_id"].to_list(), prompts["prompt"].to_list(), strict=True))
    rows = continuations(
        model, tokenizer, pairs, evaluate, cell="probe", run=0, decode_rows=probe["decode_rows"]
    )
    spec = probe["scorer"]
    key = repr(sorted(spec.items(), key=lambda item: item[0]))
    if key not in _SCORERS:
        _SCORERS[key] = open_scorer(spec, device)
    usable = [row for row in rows if row["text"] is not None]
    scores = _SCORERS[key].score([row["text"] for row in usable], token_budget=probe["score_tokens"])
    table = pl.DataFrame(
        {"prompt_id": [row["prompt_id"] for row in usable], "score": scores},
        schema={"prompt_id": pl.String, "score": pl.Float64},
    )
    failed = len(rows) - table["score"].is_not_null().sum()
    if failed > evaluate.max_failed_share * len(rows):
        raise ValueError(f"{failed} of {len(rows)} judgements failed; the trial cannot be compared")
    values: dict[str, Any] = {
        name: value for name, value in domain_means(table, prompts, evaluate.threshold).items()
    }
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
        pairs_nll = [(value, count) for value, count in zip(nll, counts, strict=True) if value is not None]
        values["clean_ppl"] = math.exp(sum(v for v, _ in pairs_nll) / max(1, sum(c for _, c in pairs_nll)))
    return {**values, "failed": failed, "probe_seconds": round(time.perf_counter() - started, 3)}


def domain_means(scores: pl.DataFrame, prompts: pl.DataFrame, threshold: float) -> dict[str, float]:
    """tp and emt as unweighted means over domains (released code U:477-485; all domains: paper section 3)."""
    per_prompt = (
        scores.drop_nulls("score")
        .group_by("prompt_id")
        .agg(emt=pl.col("score").max(), tp=(pl.col("score") > threshold).any().cast(pl.Float64))
        .join(prompts.select("prompt_id", "domain", "distribution"), on="prompt_id")
    )
    domains = per_prompt.group_by("domain", "distribution").agg(pl.col("tp").mean(), pl.col("emt").mean())
    values = {}
    for name, table in (
        ("all", domains),
        ("id", domains.filter(pl.col("distribution") == "id")),
        ("ood", domains.filter(pl.col("distribution") == "ood")),
    ):
        if table.height:
            values[f"tp_{name}"] = float(table["tp"].mean())  # type: ignore[arg-type]
            values[f"emt_{name}"] = float(table["emt"].mean())  # type: ignore[arg-type]
    return values
