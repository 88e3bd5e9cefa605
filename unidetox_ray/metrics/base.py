"""What a reader must know about a metric before comparing two values of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """`direction`: which way is better. `range`: the least and the largest value it can take. `source`: who defined it."""

    name: str
    direction: Literal["lower", "higher"]
    range: tuple[float, float]
    unit: str
    description: str
    source: str
