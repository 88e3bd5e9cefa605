"""The Pareto front of points in two measures that are both better when lower."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float | None, float | None]


def pareto_front(points: Sequence[Point]) -> list[bool | None]:
    """Whether each point is on the front: no other is at most as large in both and smaller in one.

    Equal points do not beat each other and stand or fall together. A point with a missing or non-finite number is None:
    it is neither on the front nor behind it, and beats nobody.
    """
    known = [(x, y) for x, y in points if _is_number(x) and _is_number(y)]
    return [
        None if not (_is_number(x) and _is_number(y)) else not any(_beats(other, (x, y)) for other in known)
        for x, y in points
    ]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _beats(one: Point, other: Point) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)  # type: ignore[operator]
