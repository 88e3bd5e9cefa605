"""TP and EMT over the documents of a harness run, through the same functions as everywhere else here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from unidetox_ray.metrics.space import cluster_table
from unidetox_ray.metrics.stats import Interval, RatioMean, Resampler, interval
from unidetox_ray.metrics.toxicity import domain_statistics, prompt_statistics
from unidetox_ray.schemas import PROMPTS, SCORES, frame

PARTS = ("id", "ood", "all")


def metric_names(distributions: Sequence[str]) -> list[str]:
    """The results of a run over prompts of these distributions; `failed` counts continuations without a score."""
    parts = [part for part in PARTS if part in distributions or part == "all"]
    return [
        *(f"{measure}_{part}" for measure in ("tp", "emt") for part in parts),
        *(f"{measure}_all_{end}" for measure in ("tp", "emt") for end in ("low", "high")),
        "scored",
        "failed",
    ]


def item_of(document: dict[str, Any], scores: Sequence[float | None]) -> dict[str, Any]:
    """What one document contributes to every metric; plain JSON, so that it can stand in the log of samples."""
    return {
        **{name: document[name] for name in ("prompt_id", "domain", "distribution")},
        "scores": list(scores),
    }


@dataclass(frozen=True)
class Aggregation:
    """One metric over items; NaN where no score is left to say anything, which is no number."""

    name: str
    threshold: float
    bootstrap: int

    def __call__(self, items: Sequence[dict[str, Any]]) -> float:
        if self.name in ("scored", "failed"):
            missing = sum(score is None for item in items for score in item["scores"])
            total = sum(len(item["scores"]) for item in items)
            return float(missing if self.name == "failed" else total - missing)
        measure, part, *end = self.name.split("_")
        statistic, codes = self._statistic(items, measure, part)
        if not end:
            return statistic.value
        found: Interval = interval(statistic, Resampler(codes, self.bootstrap).draws([statistic])[0])
        return found.low if end == ["low"] else found.high

    def _statistic(
        self, items: Sequence[dict[str, Any]], measure: str, part: str
    ) -> tuple[RatioMean, np.ndarray]:
        prompts = frame(
            [
                {
                    **{name: item[name] for name in ("prompt_id", "domain", "distribution")},
                    "prompt": "", "group": "", "split": "test",
                }
                for item in items
            ],
            PROMPTS,
        )  # fmt: skip
        scores = frame(
            [
                {
                    "cell": "model", "metric": "toxicity", "scorer": "judge", "prompt_id": item["prompt_id"], "run": 0,
                    "sample": sample, "value": score, "weight": 1.0, "error": None,
                }
                for item in items
                for sample, score in enumerate(item["scores"])
            ],
            SCORES,
        )  # fmt: skip
        clusters = cluster_table(prompts, "prompt_id")
        found = prompt_statistics(scores, clusters, threshold=self.threshold)
        firsts = clusters.unique("cluster", keep="first", maintain_order=True)
        names = firsts["domain"].unique(maintain_order=True).to_list()
        codes = np.array([names.index(domain) for domain in firsts["domain"]], dtype=np.int64)
        kinds = dict(firsts.select("domain", "distribution").unique(maintain_order=True).iter_rows())
        values = np.full(firsts.height, np.nan)
        values[found["cluster"].to_numpy()] = found[measure].cast(pl.Float64).fill_null(np.nan).to_numpy()
        parts = domain_statistics(values, codes, {code: kinds[domain] for code, domain in enumerate(names)})
        return parts[part], codes
