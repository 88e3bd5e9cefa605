"""The judgements of an experiment as plain calls: every scorer and the judge on all continuations, and each cell's own."""

from __future__ import annotations

from typing import Any

import polars as pl

from unidetox_ray.families.loading import load_model, load_tokenizer
from unidetox_ray.metrics.perplexity import continuation_nll
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.score import own_rows, own_tables
from unidetox_ray.stages.scorers import open_scorer

Opened = tuple[Any, Any]
"""A model in evaluation mode and its tokenizer."""


def opened(handle: Handle, device: str) -> Opened:
    path, revision = handle["path"], handle.get("revision")
    return load_model(path, device=device, revision=revision).eval(), load_tokenizer(path, revision=revision)


def judged(
    context: Context, generations: pl.DataFrame, prompts: pl.DataFrame, specs: list[dict[str, Any]], judge: Handle | None, device: str
) -> list[dict[str, Any]]:  # fmt: skip
    """Toxicity by every scorer and perplexity by the judge, of all continuations."""
    experiment = context.experiment
    evaluate, budget = experiment.evaluate, experiment.cluster.score_tokens
    places = generations.select("cell", "prompt_id", "run", "sample").to_dicts()
    texts = [str(text) for text in generations["text"].to_list()]
    rows = []
    for spec in specs:
        scorer = open_scorer(spec, device)
        values = scorer.score(texts, token_budget=budget)
        for place, value, error in zip(places, values, scorer.errors, strict=True):
            rows.append(
                {
                    **place,
                    "metric": "toxicity",
                    "scorer": spec["name"],
                    "value": value,
                    "weight": 1.0,
                    "error": error,
                }
            )
    if judge is not None:
        model, tokenizer = opened(judge, device)
        wording = dict(prompts.select("prompt_id", "prompt").iter_rows())
        nll, counts, errors = continuation_nll(
            model, tokenizer, [wording[place["prompt_id"]] for place in places], texts, bos=True,
            encoding=evaluate.ppl_encoding, prompt_cache=evaluate.ppl_prompt_cache, token_budget=budget,
        )  # fmt: skip
        for place, value, count, error in zip(places, nll, counts, errors, strict=True):
            rows.append(
                {
                    **place,
                    "metric": "ppl",
                    "scorer": judge["name"],
                    "value": value,
                    "weight": float(count or 0),
                    "error": error,
                }
            )
    return rows


def own(context: Context, cell: Cell, pair: Opened) -> list[dict[str, Any]]:
    """Clean perplexity and the quiz of one cell's own model."""
    experiment = context.experiment
    return own_rows(
        cell.name, *pair, *own_tables(context), experiment.evaluate, experiment.cluster.score_tokens
    )
