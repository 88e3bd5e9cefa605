"""The judgements of an experiment as plain calls: every scorer and the judge on all continuations, and each cell's own."""

from __future__ import annotations

from typing import Any

import polars as pl

from unidetox_ray.families.loading import adds_bos, load_model, load_tokenizer
from unidetox_ray.metrics.mmlu import quiz_answers
from unidetox_ray.metrics.perplexity import continuation_nll, text_nll
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle
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
    model, tokenizer = pair
    evaluate, budget = experiment.evaluate, experiment.cluster.score_tokens
    place = {"cell": cell.name, "run": 0, "sample": 0, "scorer": "self"}
    rows: list[dict[str, Any]] = []
    if experiment.data.clean is not None:
        table = context.data("clean", experiment.data.clean).table
        held_out = table.filter(pl.col("split") == "test")
        clean = context.limited(held_out if held_out.height else table)
        nll, counts = text_nll(
            model,
            tokenizer,
            clean["text"].to_list(),
            bos=True,
            token_budget=budget,
            max_length=evaluate.clean_max_length,
        )
        for text_id, value, count in zip(clean["text_id"].to_list(), nll, counts, strict=True):
            rows.append(
                {
                    **place,
                    "metric": "clean_ppl",
                    "prompt_id": text_id,
                    "value": value,
                    "weight": float(count),
                    "error": None,
                }
            )
    if experiment.data.mmlu is not None:
        table = context.data("mmlu", experiment.data.mmlu).table
        asked = context.limited(table.filter(pl.col("split") == "validation"), by="subject")
        quiz = pl.concat([table.filter(pl.col("split") == "dev"), asked])
        mmlu = evaluate.mmlu
        answers = quiz_answers(
            model, tokenizer, quiz, shots=mmlu.shots, form=mmlu.form, score=mmlu.score, loss_dtype=mmlu.loss_dtype,
            normalise=mmlu.normalise, bos=adds_bos(tokenizer), token_budget=budget,
        )  # fmt: skip
        for question_id, correct, error in zip(
            answers.question_ids, answers.correct, answers.error, strict=True
        ):
            rows.append(
                {
                    **place,
                    "metric": "mmlu",
                    "prompt_id": question_id,
                    "value": correct,
                    "weight": 1.0,
                    "error": error,
                }
            )
    return rows
