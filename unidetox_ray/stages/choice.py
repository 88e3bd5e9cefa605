"""Choosing among the trials of one entry and family, and the curve along a method's dial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unidetox_ray.metrics.curves import Course, Statistics, TrialSpace, course
from unidetox_ray.metrics.stats import Interval

Row = dict[str, Any]
"""A trial: trial, settings, status, error and, where it was measured, numbers (see `stages.tune`)."""


@dataclass(frozen=True)
class Choice:
    """point: the settings that were chosen; None where nothing could be, and the reason says why."""

    point: dict[str, Any] | None
    reason: str


def choose(
    rows: Sequence[Row],
    weakness: Sequence[Any],
    *,
    metric: str,
    max_clean_ppl: float,
    base: Row,
    judged: bool,
) -> Choice:
    """The lowest metric among the settings that cost no more than `max_clean_ppl`; among equals the weakest.

    weakness: what sorts each row, the nearest to the unchanged model first. base: the base model's own row. judged: whether
    clean text was read, without which no cost is known. A row that failed, or that lacks the metric, is never chosen.
    """
    usable = [
        (row, weak)
        for row, weak in zip(rows, weakness, strict=True)
        if row["status"] == "ok" and row.get(metric) is not None and math.isfinite(row[metric])
    ]
    if not usable:
        return Choice(None, f"all {len(rows)} trials failed; first error: {rows[0]['error']}")
    if judged and base["status"] != "ok":
        return Choice(None, f"the base model could not be measured, so no cost is known: {base['error']}")
    cheap = [(row, weak) for row, weak in usable if not judged or row["ratio"] <= max_clean_ppl]
    left = len(usable) - len(cheap)
    if not cheap:
        best = min(usable, key=lambda pair: (pair[0]["ratio"], pair[1]))[0]
        return Choice(
            best["settings"],
            f"no setting keeps clean_ppl within {max_clean_ppl:g} x the base model's; the one nearest to it was taken "
            f"({best['ratio']:.2f} x, validation {metric} = {best[metric]:.4f})",
        )
    best = min(cheap, key=lambda pair: (round(pair[0][metric], 12), pair[1]))[0]
    equal = sum(abs(row[metric] - best[metric]) < 1e-12 for row, _ in cheap)
    text = f"lowest validation {metric} = {best[metric]:.4f} of {len(cheap)} settings"
    text += f"; {left} more with clean_ppl above {max_clean_ppl:g} x the base model's" if left else ""
    text += f"; {equal} share it, the nearest to the base model was taken" if equal > 1 else ""
    text += "" if judged else "; there is no clean text, so the cost in perplexity is not known"
    return Choice(best["settings"], text)


@dataclass(frozen=True)
class Dial:
    """A method's dial in one grid. name: of its setting. neutral: where the model is the base. strengths: of each row."""

    name: str
    neutral: float
    strengths: Sequence[float]

    def weakness(self) -> list[tuple[float, int]]:
        """What sorts the rows by their distance from the base model, then by the grid's order."""
        return [(abs(strength - self.neutral), place) for place, strength in enumerate(self.strengths)]


def curves(
    rows: Sequence[Row],
    dial: Dial,
    statistics: Mapping[str, Statistics],
    base: Row,
    space: TrialSpace,
) -> list[dict[str, Any]]:
    """One curve for each setting of what else is tuned, from the base model along rising strengths, as plain values.

    statistics: by the rows' `trial`. The base model stands at the neutral strength unless a row was measured there. The
    verdicts speak of the strengths from there upwards; a dial turned the other way is drawn and not judged.
    """
    groups: dict[str, list[tuple[float, Row]]] = {}
    for row, strength in zip(rows, dial.strengths, strict=True):
        rest = {name: value for name, value in row["settings"].items() if name != dial.name}
        groups.setdefault(repr(rest), []).append((strength, row))
    found = []
    for members in groups.values():
        rest = {name: value for name, value in members[0][1]["settings"].items() if name != dial.name}
        points = list(members)
        if all(strength != dial.neutral for strength, _ in points):
            points.append((dial.neutral, base))
        points.sort(key=lambda point: point[0])
        upwards = [
            (strength, statistics[row["trial"]])
            for strength, row in points
            if strength >= dial.neutral and row["trial"] in statistics
        ]
        strengths = [strength for strength, _ in upwards]
        measured = [values for _, values in upwards]
        found.append(
            {
                "dial": dial.name,
                "at": rest,
                "points": [{"strength": plain(strength), "trial": row["trial"]} for strength, row in points],
                "toxicity": _told(course(space, "tp_all", measured, "falls"), strengths),
                "perplexity": _told(course(space, "clean_ppl", measured, "rises"), strengths),
            }
        )
    return found


def _told(found: Course | None, strengths: Sequence[float]) -> dict[str, Any] | None:
    if found is None:
        return None
    against = None
    if found.against is not None:
        weak, strong, gap = found.against
        against = {"weaker": plain(strengths[weak]), "stronger": plain(strengths[strong]), **ends(gap)}
    return {"holds": found.holds, "change": ends(found.change), "against": against}


def ends(found: Interval) -> dict[str, float | None]:
    """value, low, high; null where it is not defined."""
    values = {"value": found.value, "low": found.low, "high": found.high}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def plain(value: Any) -> Any:
    """Settings as strict JSON: infinity becomes "inf", which reads back as it."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
