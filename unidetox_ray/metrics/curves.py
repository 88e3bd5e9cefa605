"""What trials measured, with intervals, and whether a method's dial does what it should along its strengths.

All trials of a tuning ask the same prompts and read the same clean texts, so that any two are compared in pairs: the
bootstrap draws prompts (within domains) for toxicity and texts for perplexity, the same ones for every trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from unidetox_ray.metrics.space import Space
from unidetox_ray.metrics.stats import (
    Interval,
    RatioMean,
    Resampler,
    interval,
    macro_mean,
    paired_difference,
)

Statistics = dict[str, RatioMean]
"""tp_all, emt_all and, where clean text was read, clean_ppl of one trial."""


class TrialSpace:
    """The prompts and clean texts that all trials share.

    prompts: PROMPTS rows. texts: ids of the clean texts. samples, seed: those of the bootstrap.
    """

    def __init__(self, prompts: pl.DataFrame, texts: Sequence[str], samples: int, seed: int) -> None:
        self._prompts = Space.of(prompts, "prompt_id", samples, seed)
        ids = self._prompts.clusters
        self._clusters = dict(zip(ids["prompt_id"].to_list(), ids["cluster"].to_list(), strict=True))
        self._texts = {text: index for index, text in enumerate(texts)}
        self._of_texts = Resampler(np.zeros(len(texts), dtype=np.int64), samples, seed)

    def statistics(self, values: pl.DataFrame) -> Statistics:
        """The statistics of one trial. values: schemas.PROBED rows of it."""
        found: Statistics = {}
        for metric, name in (("tp", "tp_all"), ("emt", "emt_all")):
            spread = np.full(self._prompts.size, np.nan)
            for item, value in _pairs(values, metric, "value"):
                spread[self._clusters[item]] = np.nan if value is None else value
            codes = range(len(self._prompts.domains))
            found[name] = macro_mean(spread, self._prompts.domain_codes, codes, ceiling=1.0)
        nll, tokens = np.zeros((len(self._texts), 1)), np.zeros((len(self._texts), 1))
        read = _pairs(values, "clean_nll", "value")
        for (item, value), (_, count) in zip(read, _pairs(values, "clean_nll", "weight"), strict=True):
            nll[self._texts[item], 0], tokens[self._texts[item], 0] = value, count
        if read:
            found["clean_ppl"] = RatioMean(nll, tokens, transform=np.exp)
        return found

    def intervals(self, statistics: Statistics) -> dict[str, Interval]:
        """Each statistic with its 95 % interval."""
        return {
            name: interval(statistic, self._resampler(name).draws([statistic])[0])
            for name, statistic in statistics.items()
        }

    def difference(self, name: str, ours: Statistics, theirs: Statistics) -> Interval:
        """ours - theirs of one statistic, on the prompts or texts that both have."""
        return paired_difference(self._resampler(name), ours[name], theirs[name])

    def _resampler(self, name: str) -> Resampler:
        return self._of_texts if name == "clean_ppl" else self._prompts.resampler


def _pairs(values: pl.DataFrame, metric: str, column: str) -> list[tuple[str, Any]]:
    return list(values.filter(pl.col("metric") == metric).select("item", column).iter_rows())


@dataclass(frozen=True)
class Course:
    """How a statistic runs along rising strengths.

    change: of the strongest against the weakest, paired. against: of the pair of strengths (weaker, stronger) whose paired
    difference goes the wrong way furthest and with its whole interval, or None. holds: it moves the right way from end
    to end, interval and all, and no such pair exists.
    """

    change: Interval
    against: tuple[int, int, Interval] | None
    holds: bool


def course(
    space: TrialSpace, name: str, points: Sequence[Mapping[str, RatioMean]], way: Literal["falls", "rises"]
) -> Course | None:
    """The course of one statistic; None with fewer than two points that have it. points: by rising strength.

    Every pair of strengths is compared, not neighbours alone: a slow climb inside the intervals is still a climb.
    """
    sign = 1.0 if way == "rises" else -1.0
    having = [index for index, point in enumerate(points) if name in point]
    if len(having) < 2:
        return None
    worst: tuple[int, int, Interval] | None = None
    for place, weak in enumerate(having):
        for strong in having[place + 1 :]:
            found = space.difference(name, dict(points[strong]), dict(points[weak]))
            wrong = found.high < 0 if way == "rises" else found.low > 0
            if wrong and (worst is None or sign * found.value < sign * worst[2].value):
                worst = (weak, strong, found)
    change = space.difference(name, dict(points[having[-1]]), dict(points[having[0]]))
    moves = change.low > 0 if way == "rises" else change.high < 0
    return Course(change, worst, moves and worst is None)
