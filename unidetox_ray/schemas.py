"""Columns and dtypes of every table that is read or written. One dict per table, checked on both sides.

Text columns hold real text, hateful text among it: nothing here is printed without being asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from unidetox_ray.errors import DataError

Schema = Mapping[str, Any]

#: Text to train on. `split` is train, dev or test.
TEXTS: Schema = {"text_id": pl.String, "text": pl.String, "split": pl.String, "target": pl.String}

#: Evaluation prompts. `domain` is a key of `metrics.toxicity.DOMAINS`; `distribution` is "id" or "ood".
PROMPTS: Schema = {
    "prompt_id": pl.String,
    "prompt": pl.String,
    "domain": pl.String,
    "group": pl.String,
    "distribution": pl.String,
    "split": pl.String,
}

#: Four-choice questions in the layout of cais/mmlu; `split` is dev or validation; `answer` 0-3.
QUIZ: Schema = {
    "question_id": pl.String,
    "subject": pl.String,
    "question": pl.String,
    "choices": pl.List(pl.String),
    "answer": pl.Int64,
    "split": pl.String,
}

#: The label order of unitary/toxic-bert; a null label means "not annotated" and takes no part in the loss.
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")

#: Labelled comments for the toxicity classifier. `split` is train, dev or test.
LABELLED: Schema = {
    "text_id": pl.String,
    "text": pl.String,
    "split": pl.String,
    "source": pl.String,
    **dict.fromkeys(LABELS, pl.Float64),
}

#: A corpus to fine-tune on; `token_ids` are the base model's, BOS excluded.
CORPUS: Schema = {
    "text_id": pl.Int64,
    "shard_id": pl.Int64,
    "seed": pl.Int64,
    "text": pl.String,
    "token_ids": pl.List(pl.Int64),
    "n_tokens": pl.Int64,
    "ended": pl.Boolean,
}

#: One continuation. `run` is the sampling run (0 …), `sample` the index among a prompt's continuations.
GENERATIONS: Schema = {
    "cell": pl.String,
    "prompt_id": pl.String,
    "run": pl.Int64,
    "sample": pl.Int64,
    "text": pl.String,
    "n_tokens": pl.Int64,
    "ended": pl.Boolean,
    "error": pl.String,
}

#: One judgement of one item. `item` is "<prompt_id>/<run>/<sample>" for continuations, "<question_id>" for
#: quiz items and "<text_id>" for clean text. A failed judgement has a null value and its error.
SCORES: Schema = {
    "cell": pl.String,
    "metric": pl.String,
    "scorer": pl.String,
    "prompt_id": pl.String,
    "run": pl.Int64,
    "sample": pl.Int64,
    "value": pl.Float64,
    "weight": pl.Float64,
    "error": pl.String,
}

#: What a trial of the tuning measured: `tp` and `emt` of each prompt (weight 1), and `clean_nll` of each clean text, in
#: nats over `weight` tokens.
PROBED: Schema = {"item": pl.String, "metric": pl.String, "value": pl.Float64, "weight": pl.Float64}

#: The flat form of results.json: one row per cell and metric.
RESULTS: Schema = {
    "family": pl.String,
    "model": pl.String,
    "method": pl.String,
    "seed": pl.Int64,
    "settings": pl.String,
    "status": pl.String,
    "error": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
}


def check(table: pl.DataFrame, schema: Schema, where: str) -> pl.DataFrame:
    """`table` with exactly the columns of `schema`, in its order; DataError naming what is missing or mistyped."""
    missing = [name for name in schema if name not in table.columns]
    if missing:
        raise DataError(f"{where}: column {missing[0]!r} is missing; it holds {table.columns}")
    table = table.select(list(schema))
    for name, dtype in schema.items():
        if table.schema[name] != dtype:
            if table.schema[name] == pl.Null:
                table = table.with_columns(pl.col(name).cast(dtype))
                continue
            raise DataError(f"{where}: column {name!r} holds {table.schema[name]}, expected {dtype}")
    return table


def frame(rows: list[dict[str, Any]], schema: Schema) -> pl.DataFrame:
    """Rows as a table of exactly this schema; an empty list gives an empty table with the right columns."""
    return pl.DataFrame(rows, schema=dict(schema))
