"""What a metric is: what a reader must know before comparing two values of it, and how stored rows become its numbers.

A metric's own file makes a `Metric`; one line of the registry names it. `measure.measure` asks each of them in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import polars as pl

from unidetox_ray.errors import ConfigError
from unidetox_ray.metrics.space import GroupBy, Space
from unidetox_ray.metrics.stats import MIN_SAMPLES, Resampler, Statistic

#: The `error` of a judgement that found nothing to judge, which is counted and is no failure.
EMPTY = "empty"


@dataclass(frozen=True)
class ResultSettings:
    """The part of the protocol that turns judgements into numbers; see `settings.EvaluateSection` for each."""

    scorer: str | None = None
    """Its metrics have plain names, others `name@scorer`; None = the only one there is."""
    judge: str | None = None
    """The same for perplexity."""
    threshold: float = 0.5
    ppl_drop_at: float = 1e4
    group_by: GroupBy = "prompt_id"
    bootstrap_samples: int = MIN_SAMPLES
    seed: int = 0
    max_failed_share: float = 0.01


@dataclass(frozen=True)
class Measured:
    """A number of one cell before its interval. failed: of `expected` things, which `unit` names.

    resampler: of the clusters of `statistic`. Numbers are resampled and compared in pairs when cells share it.
    """

    statistic: Statistic
    resampler: Resampler
    failed: int
    expected: int
    unit: str = "judgements"

    def reason(self, limit: float) -> str | None:
        """Why the number is withheld, or None."""
        if self.failed > limit * self.expected:
            return f"{self.failed} of {self.expected} {self.unit} failed, at most {limit:.2%} may"
        return None if math.isfinite(self.statistic.value) else "nothing to average"


class Number(NamedTuple):
    """One entry of results.json: `metrics.<name>` of a cell or, with a domain, `domains.<domain>.<name>`."""

    cell: str
    name: str
    measured: Measured
    domain: str | None = None


@dataclass(frozen=True)
class Tables:
    """All that a metric reads: rows of the live cells, and the clusters of prompts that these cells share.

    scores, generations: SCORES and GENERATIONS rows, in any order. prompts: PROMPTS rows, those in use.
    """

    scores: pl.DataFrame
    generations: pl.DataFrame
    prompts: pl.DataFrame
    cells: tuple[str, ...]
    space: Space
    settings: ResultSettings

    def judged(self, name: str) -> pl.DataFrame:
        """The rows of `scores` whose column `metric` is `name`."""
        return self.scores.filter(pl.col("metric") == name)

    def by_cell(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """The rows of each live cell; a cell without any gets an empty table, so that its numbers are withheld, not absent."""
        parts = {str(key[0]): part for key, part in rows.group_by("cell", maintain_order=True)}
        for cell in self.cells:
            yield cell, parts.get(cell, rows.clear())

    def lost(self) -> tuple[dict[str, int], int]:
        """Continuations that each cell lacks, and of how many: those of the fullest cell, as all have one protocol."""
        expected = int(self.generations.group_by("cell").len()["len"].max() or 0)  # type: ignore[arg-type]
        good = self.generations.filter(pl.col("error").is_null())
        return {cell: expected - part.height for cell, part in self.by_cell(good)}, expected


def judges(rows: pl.DataFrame, wanted: str | None, what: str) -> list[tuple[str, str]]:
    """(judge, tail of its numbers' names) of SCORES rows, the main one first, whose tail is "".

    The main one is there even where it has no rows, so that its numbers are withheld. ConfigError when `wanted` is
    None and more than one has rows; `what` says whose names these are.
    """
    present = rows["scorer"].unique(maintain_order=True).to_list()
    if wanted is None and len(present) > 1:
        raise ConfigError(f"{what}: scores hold {sorted(present)}; say which of them is the main one")
    main = wanted or present[0]
    return [(main, ""), *((name, f"@{name}") for name in present if name != main)]


@dataclass(frozen=True)
class Metric:
    """`direction`: which way is better. `range`: the least and the largest value it can take. `source`: who defined it."""

    name: str
    direction: Literal["lower", "higher"]
    range: tuple[float, float]
    unit: str
    description: str
    source: str
    measured: Callable[[Tables], Iterator[Number]]
    """Its numbers for every live cell, the one that `direction` and `range` speak of first; none without rows to read."""
    judgements: str | None = None
    """Of continuations, if it reads any: their `metric` in SCORES. A prompt judged there has to be in the table of prompts."""
