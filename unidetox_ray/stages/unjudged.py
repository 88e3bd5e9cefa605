"""Score orders that kill their worker: how they are halved, and the rows of those that are given up. A failure is null, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from unidetox_ray.schemas import SCORES, frame
from unidetox_ray.stages.recovery import halved


def halves(order: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Halves of a continuations order by continuations; a cell's own measurements stand alone."""
    return halved(order, "count") if order["what"] == "continuations" else []


def unjudged(order: Mapping[str, Any], settings: Mapping[str, Any], reason: str) -> pl.DataFrame:
    """Rows of schemas.SCORES, all null for this reason, as many as the order has, in a worker's order."""
    failed = {"value": None, "weight": 0.0, "error": reason}
    if order["what"] == "continuations":
        table = pl.read_parquet(settings["generations"]).slice(order["first"], order["count"])
        places = table.select("cell", "prompt_id", "run", "sample").to_dicts()
        judges = [("toxicity", spec["name"]) for spec in settings["scorers"]]
        if settings["judge"] is not None:
            judges.append(("ppl", settings["judge"]["name"]))
        rows = [
            {**place, "metric": metric, "scorer": scorer, **failed}
            for metric, scorer in judges
            for place in places
        ]
        return frame(rows, SCORES)
    fixed = {"cell": order["cell"], "run": 0, "sample": 0, "scorer": "self", **failed}
    rows = []
    if settings["clean"] is not None:
        ids = pl.read_parquet(settings["clean"])["text_id"].to_list()
        rows += [{**fixed, "metric": "clean_ppl", "prompt_id": text_id} for text_id in ids]
    if settings["quiz"] is not None:
        asked = pl.read_parquet(settings["quiz"]).filter(pl.col("split") == "validation")
        rows += [
            {**fixed, "metric": "mmlu", "prompt_id": question} for question in asked["question_id"].to_list()
        ]
    return frame(rows, SCORES)
