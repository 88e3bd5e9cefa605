"""A method's dial as one SVG panel: toxicity above, perplexity of clean text below, over the strengths in their order.

Strengths stand at even distances, whatever their values: grids are often geometric, and one may be infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

from unidetox_ray.report import svg
from unidetox_ray.report.model import Metric
from unidetox_ray.report.svg import WIDTH, figure, label
from unidetox_ray.report.text import interval, number

_HEIGHT, _LEFT, _RIGHT = 308.0, 38.0, WIDTH - 12.0
_UPPER, _LOWER = (46.0, 148.0), (186.0, 264.0)  # top and bottom of the two plots


@dataclass(frozen=True)
class Stop:
    """One strength. name: as it is written. toxicity in [0, 1]; perplexity: both without a value where a trial failed."""

    name: str
    toxicity: Metric
    perplexity: Metric
    chosen: bool = False


def dial_chart(title: str, stops: list[Stop], slot: int, names: tuple[str, str, str]) -> str:
    """One family's curve. stops: by rising strength. slot: of the method's colour. names: dial, toxicity, perplexity."""
    dial, toxicity, perplexity = names
    xs = [_LEFT + 14 + (_RIGHT - _LEFT - 28) * (at + 0.5) / max(1, len(stops)) for at in range(len(stops))]
    body = label(0, 13, title, class_="t head")
    body += _plot([stop.toxicity for stop in stops], xs, _UPPER, (0.0, 1.0), [0, 0.25, 0.5, 0.75, 1], slot, stops, toxicity)  # fmt: skip
    seen = [stop.perplexity for stop in stops if stop.perplexity.value is not None]
    if seen:
        low = min(min(one.value or 0.0, one.low or one.value or 0.0) for one in seen)
        high = max(max(one.value or 0.0, one.high or one.value or 0.0) for one in seen)
        pad = (high - low) * 0.1 or 0.1 * high
        spans = (low / 1.15, high * 1.15) if high > 8 * low > 0 else (low - pad, high + pad)
        marks = svg.log_ticks(*spans)[:6] if high > 8 * low > 0 else svg.ticks(*spans, 3)
        body += _plot([stop.perplexity for stop in stops], xs, _LOWER, spans, marks, slot, stops, perplexity)
    for x, stop in zip(xs, stops, strict=True):
        body += label(x, _LOWER[1] + 14, stop.name, "middle", "t tick", 8)
    body += label(_RIGHT, _LOWER[1] + 30, dial, "end", "t axis")
    told = [
        f"{dial} {stop.name}{' (chosen)' if stop.chosen else ''}: {toxicity} {number(stop.toxicity.value)}, "
        f"{perplexity} {number(stop.perplexity.value)}"
        for stop in stops
    ]
    return figure(f"{toxicity} and {perplexity} by {dial}, {title}", "; ".join(told), _HEIGHT, body)


def _plot(
    values: list[Metric],
    xs: list[float],
    box: tuple[float, float],
    spans: tuple[float, float],
    ticks: list[float],
    slot: int,
    stops: list[Stop],
    name: str,
) -> str:
    top, bottom = box
    wide = spans[1] > 8 * spans[0] > 0
    place = svg.scale(*spans, bottom, top, wide)
    body = svg.y_axis(ticks, place, _LEFT, _RIGHT, name + (" (log scale)" if wide else ""), top - 12)
    line = [(x, place(one.value)) for x, one in zip(xs, values, strict=True) if one.value is not None]
    body += svg.path(line, slot) if len(line) > 1 else ""
    for x, one, stop in zip(xs, values, stops, strict=True):
        if one.value is None:
            continue
        if one.low is not None and one.high is not None:
            body += svg.whisker(x, place(one.low), x, place(one.high), slot)
        words = f"{stop.name}: {name} {number(one.value)} {interval(one.low, one.high)}".strip()
        body += svg.mark(x, place(one.value), slot, words + (", chosen" if stop.chosen else ""), 3.8)
        if stop.chosen:
            body += label(x, place(one.value) - 8, "★", "middle", "t value strong")
    return body
