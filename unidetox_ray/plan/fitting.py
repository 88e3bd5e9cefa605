"""Seconds as a sum of coefficients times features, fitted to measurements, none of the coefficients negative.

A kind of work ("train", "decode", "read", "classify") takes Σ c_k f_k seconds. The features `compute`, `weights` and `cache` are the
times of its arithmetic and of reading weights, keys and values at the device's measured limits, so that 1 / c is the achieved share of them; the
others count what costs time whatever the arithmetic: passes through layers, logits, texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Measured seconds of one piece of work and what it consisted of.
Point = tuple[Mapping[str, float], float]


@dataclass(frozen=True)
class Fit:
    """coefficients: by feature, >= 0. error: the mean relative deviation at the points it was fitted to."""

    coefficients: Mapping[str, float]
    error: float = 0.0

    def seconds(self, features: Mapping[str, float]) -> float:
        """Of work with these features; one without a coefficient costs nothing."""
        return sum(self.coefficients.get(name, 0.0) * amount for name, amount in features.items())

    @property
    def share(self) -> float | None:
        """The share of the matrix-product rate that the work reaches beside its overheads; None where arithmetic costs nothing."""
        compute = self.coefficients.get("compute", 0.0)
        return 1.0 / compute if compute > 0 else None


#: How many measurements a coefficient before the fit counts for.
_PRIOR = 1e-3


def fitted(points: Sequence[Point], before: Mapping[str, float]) -> Fit:
    """The least squares of relative deviations, drawn to what was known before, no coefficient negative.

    before: coefficients by feature, > 0 for those that count. A few measurements cannot tell features from one another that
    come together; what they leave open stays in the proportions of `before`, which a factor for
    all of them is found for first.
    """
    names = [name for name, value in before.items() if value > 0]
    if not points or not names:
        return Fit(dict(before))
    seconds = np.array([taken for _, taken in points])
    if not (seconds > 0).all():
        raise ValueError("a measurement of no seconds")
    known = np.array([before[name] for name in names])
    rows = np.array([[features.get(name, 0.0) for name in names] for features, _ in points])
    # All of them too fast or too slow alike is the first thing that measurements say; then which.
    shares = rows @ known / seconds
    if not (shares > 0).any():
        return Fit(dict(before))
    known = known * float(shares.sum() / (shares**2).sum())
    scaled = rows * known / seconds[:, None]
    weight = np.sqrt(_PRIOR)
    left = np.vstack([scaled, weight * np.eye(len(names))])
    right = np.concatenate([np.ones(len(points)), weight * np.ones(len(names))])
    active = list(range(len(names)))
    found = np.zeros(len(names))
    while active:
        part, *_ = np.linalg.lstsq(left[:, active], right, rcond=None)
        if (part >= 0).all():
            found[active] = part
            break
        active = [index for index, value in zip(active, part, strict=True) if value > 0]
    coefficients = {
        name: float(factor * value) for name, factor, value in zip(names, found, known, strict=True)
    }
    deviations = rows @ (found * known) / seconds - 1.0
    return Fit(coefficients, float(np.abs(deviations).mean()))
