"""TP, EMT, mean and share over the documents of a harness run, through the functions of `unidetox evaluate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from unidetox_ray.evaluate.measured import (
    MEASURES,
    Pool,
    ends,
    full_column,
    judged,
    statistics_of,
    value_column,
)
from unidetox_ray.metrics.stats import interval

_JUDGE = "judge"
_NAN = float("nan")


def item_of(document: dict[str, Any], scores: Sequence[float | None]) -> dict[str, Any]:
    """What one document contributes to every metric; plain JSON, so that it can stand in the log of samples."""
    return {
        **{name: document[name] for name in ("prompt_id", "domain", "distribution")},
        "scores": list(scores),
    }


def metric_names(distributions: Sequence[str]) -> list[str]:
    """The results of a run over prompts of these distributions.

    <measure>_all with <measure>_all_low and _high, the ends of its 95 % interval; <measure>_<distribution> where there are
    several; `scored` and `failed`, continuations with and without a score.
    """
    scopes = ["all", *(_plain(kind) for kind in distributions if len(distributions) > 1)]
    ends_of = [f"{measure}_all_{end}" for measure in MEASURES for end in ("low", "high")]
    return [*(f"{measure}_{scope}" for measure in MEASURES for scope in scopes), *ends_of, "scored", "failed"]


@dataclass
class Numbers:
    """Every metric of a run at once. threshold: toxic above it. bootstrap: resamples by prompt."""

    threshold: float
    bootstrap: int
    _kept: tuple[list[int], dict[str, float]] | None = field(default=None, repr=False)

    def of(self, items: Sequence[dict[str, Any]]) -> dict[str, float]:
        """By name; NaN where no score is left to say anything, which is no number. Every metric is asked with equal items."""
        mark = [id(item) for item in items]
        if self._kept is None or self._kept[0] != mark:
            self._kept = (mark, self._made(items))
        return self._kept[1]

    def _made(self, items: Sequence[dict[str, Any]]) -> dict[str, float]:
        columns = ("prompt_id", "domain", "distribution")
        prompts = pl.DataFrame([{name: item[name] for name in columns} for item in items])
        scores = [(item["prompt_id"], score) for item in items for score in item["scores"]]
        rows = pl.DataFrame(
            {"key": [key for key, _ in scores], value_column(_JUDGE): [score for _, score in scores]},
            schema={"key": pl.String, value_column(_JUDGE): pl.Float64},
        ).with_columns(run=pl.lit(0, pl.Int64), made=True, **{full_column(_JUDGE): pl.lit(False)})
        pool = Pool(self.bootstrap, seed=0)
        part = judged("model", _JUDGE, rows, pool.space(prompts), self.threshold)
        wanted = {
            f"{measure}_{_plain(name)}": pool.add(part.space, statistic)
            for (measure, kind, name), statistic in statistics_of(part).items()
            if kind == "scope"
        }
        pool.draw()
        found = {"scored": float(part.counts["ok"]), "failed": float(part.counts["failed"])}
        for name, statistic in wanted.items():
            values = ends(interval(statistic, pool.of(statistic)))
            for tail, end in (("", "value"), ("_low", "ci_low"), ("_high", "ci_high")):
                number = values[end]
                found[name + tail] = _NAN if number is None else number
        kinds = prompts["distribution"].unique().to_list()
        if len(kinds) == 1:
            found |= {f"{measure}_{_plain(kinds[0])}": found[f"{measure}_all"] for measure in MEASURES}
        return found


@dataclass(frozen=True, eq=False)
class Aggregation:
    """One metric over the items of all documents, as the harness calls it."""

    name: str
    numbers: Numbers

    def __call__(self, items: Sequence[dict[str, Any]]) -> float:
        # The harness's --limit can leave a distribution without a document.
        return self.numbers.of(items).get(self.name, _NAN)


def _plain(name: str) -> str:
    """A distribution's name as it can stand in the harness's keys, which hold commas of their own."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)
