"""Tests on paired values: sign flips with an exact or sampled null distribution, Holm's correction, effect size.

Under the null hypothesis the two sides of a pair could be swapped, so that the sign of each difference is a coin's. The
statistic is the absolute weighted sum of the differences; p is the share of sign patterns that give at least as much
(Fisher 1935; Pitman 1937). Sampled patterns count the one that was seen, so that p is never 0 (Phipson and Smyth 2010).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unidetox_ray.metrics.stats import Floats

#: Null distributions with at most so many values are enumerated.
EXACT_VALUES = 2**20
#: Sampled patterns, and how many there are where more differences than `_MANY` all differ in size.
PATTERNS, FEWER_PATTERNS, _MANY = 100_000, 20_000, 5_000
_CHUNK_BYTES = 32 * 2**20
#: Sums that differ by less than this share of their size are equal: the order of adding is no difference.
_TIE = 1e-9


@dataclass(frozen=True)
class Test:
    """p: two-sided. method: how it was found. n: pairs; differing: those whose two sides differ."""

    p: float
    method: str
    n: int
    differing: int


def sign_flip(contributions: Floats, *, seed: int = 0) -> Test:
    """The paired sign-flip test of sum(contributions) = 0; contributions: (n,) weight times difference of each pair.

    Differences of equal size share a binomial number of plus signs, so that a test on zeros and ones is exact at any n
    (for one weight it is McNemar's exact test).
    """
    sizes = np.abs(np.asarray(contributions, dtype=np.float64))
    scale = float(sizes.max(initial=0.0))
    kept = sizes > scale * 1e-12
    n, differing = len(sizes), int(kept.sum())
    if differing == 0:
        return Test(1.0, "paired sign-flip, exact: no pair differs", n, 0)
    # Weights 1/(domains x prompts) of equal differences differ in their last bit at most.
    magnitudes, counts = np.unique(np.round(sizes[kept] / scale, 12), return_counts=True)
    seen = abs(float((np.asarray(contributions)[kept] / scale).sum()))
    reach = seen - _TIE * max(1.0, seen)
    if math.prod(int(count) + 1 for count in counts) <= EXACT_VALUES:
        sums, chances = _enumerated(magnitudes, counts)
        p = float(chances[np.abs(sums) >= reach].sum())
        return Test(min(1.0, p), f"paired sign-flip, exact over 2^{differing} sign patterns", n, differing)
    single = counts == 1
    patterns = PATTERNS if int(single.sum()) <= _MANY else FEWER_PATTERNS
    sums = _sampled(magnitudes, counts, patterns, np.random.default_rng(seed))
    p = (int((np.abs(sums) >= reach).sum()) + 1) / (patterns + 1)
    return Test(p, f"paired sign-flip, {patterns:,} random sign patterns", n, differing)


def _enumerated(magnitudes: Floats, counts: np.ndarray) -> tuple[Floats, Floats]:
    """Every value of the sum under the null hypothesis, and its probability."""
    sums, chances = np.zeros(1), np.ones(1)
    for size, count in zip(magnitudes.tolist(), counts.tolist(), strict=True):
        plus = np.arange(count + 1)
        log = [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)
        ]
        chance = np.exp(np.array(log) - count * math.log(2))
        sums = (sums[:, None] + size * (2 * plus - count)[None, :]).ravel()
        chances = (chances[:, None] * chance[None, :]).ravel()
    return sums, chances


def _sampled(magnitudes: Floats, counts: np.ndarray, patterns: int, generator: np.random.Generator) -> Floats:
    """(patterns,) sums under random signs."""
    sums = np.zeros(patterns)
    for size, count in zip(magnitudes[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        sums += size * (2.0 * generator.binomial(count, 0.5, size=patterns) - count)
    single = magnitudes[counts == 1]
    if len(single):
        rows = max(1, _CHUNK_BYTES // (8 * len(single)))
        for start in range(0, patterns, rows):
            stop = min(patterns, start + rows)
            coins = np.frombuffer(generator.bytes((stop - start) * -(-len(single) // 8)), dtype=np.uint8)
            signs = np.unpackbits(coins.reshape(stop - start, -1), axis=1)[:, : len(single)]
            sums[start:stop] += 2.0 * (signs.astype(np.float64) @ single) - single.sum()
    return sums


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given (Holm 1979): the family-wise error stays below a level they are held against."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    adjusted, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, values[place] * (len(values) - rank)))
        adjusted[place] = least
    return adjusted


def standardised(differences: Floats) -> float | None:
    """Cohen's d of paired differences: their mean over their standard deviation (n - 1); None where they do not vary."""
    if len(differences) < 2:
        return None
    spread = float(np.std(differences, ddof=1))
    return float(np.mean(differences)) / spread if spread > 0 else None
