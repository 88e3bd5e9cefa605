"""Uncertainty: a cluster bootstrap by prompt, percentile intervals, paired differences, bounds for zero counts.

Every statistic here is a `RatioMean`: a mean of ratios of sums over clusters. A resample only changes how often each
cluster counts, so all resamples of all statistics are one product of matrices, (samples, clusters) times
(clusters, columns). Source: Davison and Hinkley (1997), sections 2.4 and 3.2; rule of three: Hanley and
Lippman-Hand (1983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_SAMPLES = 10_000
#: Resample weights are kept between calls up to this many bytes (16 bits each), beyond it drawn anew from the seed.
KEEP_BYTES = 128 * 2**20
#: Largest block of weights in float64 at any moment.
CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Interval:
    """A value with its percentile interval; all three NaN when the statistic is not defined on these data."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RatioMean:
    """mean over columns r of transform(sum_c numerator[c, r] / sum_c denominator[c, r]).

    numerator, denominator: (clusters, R) float64, finite; a cluster without data has 0 in both. R = 1 and
    denominator = 1 is a plain mean, R = domains a macro mean, numerator = nll, denominator = tokens and
    transform = exp a pooled perplexity. ceiling: every cluster's ratio lies in [0, ceiling]; None = not known.
    """

    numerator: Floats
    denominator: Floats
    transform: Callable[[Floats], Floats] | None = None
    ceiling: float | None = None

    def of_sums(self, sums: Floats) -> Floats:
        """Values from resampled sums (..., 2R), numerators first; NaN where any denominator is 0."""
        columns = self.numerator.shape[1]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratios = sums[..., :columns] / sums[..., columns:]
            if self.transform is not None:
                ratios = self.transform(ratios)
        if columns == 0:
            return np.full(ratios.shape[:-1], np.nan)
        values: Floats = np.where((sums[..., columns:] > 0).all(axis=-1), ratios.mean(axis=-1), np.nan)
        return values

    @cached_property
    def sides(self) -> Floats:
        """(clusters, 2R): numerators, then denominators."""
        return np.concatenate([self.numerator, self.denominator], axis=1)

    @property
    def value(self) -> float:
        return float(self.of_sums(self.sides.sum(axis=0)))

    @property
    def present(self) -> NDArray[np.bool_]:
        """(clusters,): which clusters have data in at least one column."""
        some: NDArray[np.bool_] = np.any(self.denominator > 0, axis=1)
        return some

    @property
    def n(self) -> int:
        return int(self.present.sum())

    @property
    def even_n(self) -> float:
        """The n of a zero count. With unequal columns the bound is largest when all risk lies in the smallest one."""
        counts = (self.denominator > 0).sum(axis=0)
        return float(len(counts) * counts.min()) if len(counts) else 0.0

    def restricted(self, keep: NDArray[np.bool_]) -> RatioMean:
        """The same statistic on the clusters marked in `keep`, (clusters,)."""
        mask = keep[:, None].astype(np.float64)
        return replace(self, numerator=self.numerator * mask, denominator=self.denominator * mask)


@dataclass(frozen=True)
class Median:
    """The median of (N,) float64 values, each of which belongs to one of `size` clusters; clusters: (N,) codes."""

    values: Floats
    clusters: Ints
    size: int
    ceiling: None = None

    @property
    def value(self) -> float:
        return float(np.median(self.values)) if len(self.values) else float("nan")

    @property
    def present(self) -> NDArray[np.bool_]:
        return np.bincount(self.clusters, minlength=self.size) > 0

    @property
    def n(self) -> int:
        return int(self.present.sum())

    def restricted(self, keep: NDArray[np.bool_]) -> Median:
        rows = keep[self.clusters]
        return replace(self, values=self.values[rows], clusters=self.clusters[rows])


Statistic = RatioMean | Median


def plain_mean(values: Floats, *, ceiling: float | None = None) -> RatioMean:
    """The mean of (clusters,) values; NaN = no data."""
    seen = np.isfinite(values)
    return RatioMean(np.where(seen, values, 0.0)[:, None], seen.astype(np.float64)[:, None], ceiling=ceiling)


def macro_mean(
    values: Floats, domains: Ints, wanted: Sequence[int], *, ceiling: float | None = None
) -> RatioMean:
    """The unweighted mean over the `wanted` domains of the mean over each domain's clusters.

    values: (clusters,), NaN = no data. domains: (clusters,) codes. Undefined when a wanted domain has no data.
    """
    seen = np.isfinite(values)
    member = (domains[:, None] == np.asarray(list(wanted), dtype=np.int64)[None, :]) & seen[:, None]
    numerator = np.where(member, np.where(seen, values, 0.0)[:, None], 0.0)
    return RatioMean(numerator, member.astype(np.float64), ceiling=ceiling)


class Resampler:
    """Bootstrap weights over clusters, the same for every statistic: differences drawn with it are paired.

    strata: (clusters,) codes; each stratum is resampled to its own size (codes all equal = plain bootstrap).
    """

    def __init__(self, strata: Sequence[int] | Ints, samples: int = MIN_SAMPLES, seed: int = 0) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}")
        self.strata = np.asarray(strata, dtype=np.int64)
        self.samples = samples
        self.seed = seed
        self._kept: list[NDArray[np.uint16]] | None = None

    def weights(self) -> Iterator[NDArray[np.uint16]]:
        """How often each cluster is drawn, in blocks (b, clusters) that add up to `samples` rows."""
        if self._kept is not None:
            yield from self._kept
            return
        keep = self.samples * len(self.strata) * 2 <= KEEP_BYTES
        kept = []
        groups = [np.flatnonzero(self.strata == code) for code in np.unique(self.strata)]
        rows = max(1, min(self.samples, CHUNK_BYTES // (8 * max(1, len(self.strata)))))
        generator = np.random.default_rng(self.seed)
        for start in range(0, self.samples, rows):
            count = min(rows, self.samples - start)
            block = np.zeros((count, len(self.strata)), dtype=np.uint16)
            for group in groups:
                # Multinomial counts; drawing the members and counting them is far cheaper than the binomial chain.
                drawn = generator.integers(0, len(group), size=(count, len(group)))
                drawn += np.arange(count)[:, None] * len(group)
                counts = np.bincount(drawn.ravel(), minlength=count * len(group))
                block[:, group] = counts.reshape(count, len(group))
            if keep:
                kept.append(block)
            yield block
        if keep:
            self._kept = kept

    def sums(self, columns: Floats) -> Floats:
        """Resampled sums (samples, K) of (clusters, K) columns, in the dtype of the columns."""
        return np.concatenate([block.astype(columns.dtype) @ columns for block in self.weights()])

    def draws(self, statistics: Sequence[Statistic]) -> list[Floats]:
        """The bootstrap distribution of each statistic, (samples,) float64, NaN where a resample leaves it undefined."""
        ratios = [statistic for statistic in statistics if isinstance(statistic, RatioMean)]
        ends = np.cumsum([0, *(statistic.sides.shape[1] for statistic in ratios)])
        sums = self.sums(np.concatenate([s.sides for s in ratios], axis=1)) if ratios else np.empty((0, 0))
        spans = pairwise(ends.tolist())
        drawn = []
        for statistic in statistics:
            if isinstance(statistic, RatioMean):
                start, end = next(spans)
                drawn.append(statistic.of_sums(sums[:, start:end]))
            else:
                drawn.append(self.median_draws(statistic.values, statistic.clusters))
        return drawn

    def median_draws(self, values: Floats, clusters: Ints, *, resolution: int = 256) -> Floats:
        """The bootstrap distribution of the median of (N,) values that belong to clusters (N,), (samples,) float64.

        The median of a resample is its lower one, read off cumulated counts: once on a coarse grid of ranks, once on
        `resolution` ranks of the stretch that holds them all, so a draw is rounded up by at most a step of that grid.
        """
        if not len(values):
            return np.full(self.samples, np.nan)
        order = np.argsort(values, kind="stable")
        values, clusters = values[order], clusters[order]
        half = self._counts(clusters, np.array([len(values) - 1])) / 2
        coarse = _grid(0, len(values) - 1, 24)
        reached = self._counts(clusters, coarse) >= half
        highest = int(coarse[reached.all(axis=0).argmax()])
        before = int(reached.any(axis=0).argmax()) - 1
        fine = _grid(int(coarse[before]) + 1 if before >= 0 else 0, highest, resolution)
        drawn = values[fine[(self._counts(clusters, fine) >= half).argmax(axis=1)]]
        medians: Floats = np.where(half[:, 0] > 0, drawn, np.nan)
        return medians

    def _counts(self, clusters: Ints, ranks: Ints) -> Floats:
        """How many of the sorted values, whose clusters are given, have a rank <= each of `ranks`; (samples, K)."""
        slots = np.searchsorted(ranks, np.arange(len(clusters)))
        inside = slots < len(ranks)
        cells = clusters[inside] * len(ranks) + slots[inside]
        counts = np.bincount(cells, minlength=len(self.strata) * len(ranks)).reshape(-1, len(ranks))
        counts = np.cumsum(counts, axis=1)
        # No resample counts more than the fullest cluster every time; below 2**24 float32 is exact, and half the work.
        exact = np.float32 if int(counts[:, -1].max(initial=0)) * len(self.strata) < 2**24 else np.float64
        return self.sums(counts.astype(exact))


def _grid(low: int, high: int, most: int) -> Ints:
    """At most `most` ranks from low to high, both included."""
    return np.unique(np.linspace(low, high, min(most, high - low + 1)).round().astype(np.int64))


def percentile_interval(value: float, draws: Floats, confidence: float = 0.95) -> Interval:
    """The central share `confidence` of the draws. Undefined draws are left out; no draw at all gives NaN ends.

    A skewed bootstrap distribution can miss its own estimate by a hair; the interval is widened to hold it.
    """
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(draws):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def rule_of_three(n: float) -> float:
    """95 % upper bound of a share that was never seen in n trials, 3/n and at most 1; n = 0 bounds nothing."""
    return min(1.0, 3.0 / n) if n > 0 else 1.0


def interval(statistic: Statistic, draws: Floats, confidence: float = 0.95) -> Interval:
    """The percentile interval; where a statistic with a ceiling is all zeros, all at its ceiling, or in each of its columns one
    of both, every resample agrees, and the rule of three says how far the truth may still be.
    """
    found = percentile_interval(statistic.value, draws, confidence)
    if statistic.ceiling is None or isinstance(statistic, Median) or not np.isfinite(found.value):
        return found
    if not _at_ends(statistic, statistic.ceiling) or not np.isclose(
        found.low, found.high, rtol=1e-12, atol=0
    ):
        return found
    room = statistic.ceiling * rule_of_three(statistic.even_n)
    return Interval(found.value, max(0.0, found.value - room), min(statistic.ceiling, found.value + room))


def paired_difference(
    resampler: Resampler, ours: Statistic, theirs: Statistic, confidence: float = 0.95,
    draws: tuple[Floats, Floats] | None = None,
) -> Interval:  # fmt: skip
    """ours - theirs on the clusters that both have, with the same resamples for both.

    draws: those of both, used when no cluster has to be left out. Where all clusters differ by the same amount between
    floor and ceiling, the rule of three widens the interval: up to 3 in n clusters may still differ otherwise.
    """
    both = ours.present & theirs.present
    if draws is None or not ((ours.present == both).all() and (theirs.present == both).all()):
        ours, theirs = ours.restricted(both), theirs.restricted(both)
        first, second = resampler.draws([ours, theirs])
    else:
        first, second = draws
    found = percentile_interval(ours.value - theirs.value, first - second, confidence)
    if isinstance(ours, Median) or isinstance(theirs, Median) or not np.isfinite(found.value):
        return found
    if ours.ceiling is None or theirs.ceiling is None or found.low < found.high:
        return found
    ceiling = max(ours.ceiling, theirs.ceiling)
    if all(_at_ends(side, ceiling) for side in (ours, theirs)):
        room = ceiling * rule_of_three(ours.even_n)
        return Interval(found.value, max(-ceiling, found.value - room), min(ceiling, found.value + room))
    return found


def bootstrap_mean(
    values: Floats, *, samples: int = MIN_SAMPLES, seed: int = 0, confidence: float = 0.95
) -> dict[str, float | int | None]:
    """{value, ci_low, ci_high, n} of the mean of (N,) values in [0, 1], one per prompt; NaN = none, null if all are."""
    statistic = plain_mean(np.asarray(values, dtype=np.float64), ceiling=1.0)
    resampler = Resampler(np.zeros(len(values), dtype=np.int64), samples, seed)
    found = interval(statistic, resampler.draws([statistic])[0], confidence)
    ends = {"value": found.value, "ci_low": found.low, "ci_high": found.high}
    return {**{name: end if np.isfinite(end) else None for name, end in ends.items()}, "n": statistic.n}


def _at_ends(statistic: RatioMean, ceiling: float) -> bool:
    """Whether every cluster is at 0 or at the ceiling."""
    near = np.isclose(_ratios(statistic)[:, None], np.array([0.0, ceiling]), rtol=1e-12, atol=0)
    return bool(near.any(axis=1).all())


def _ratios(statistic: RatioMean) -> Floats:
    data = statistic.denominator > 0
    ratios: Floats = statistic.numerator[data] / statistic.denominator[data]
    return ratios
