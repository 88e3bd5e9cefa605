"""The report's five kinds of chart, each a function from plain values to one SVG panel (see `svg`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unidetox_ray.report import svg
from unidetox_ray.report.model import Metric
from unidetox_ray.report.svg import WIDTH, element, figure, label
from unidetox_ray.report.text import count, interval, number, rate


@dataclass(frozen=True)
class Dot:
    """A measured value of one method in one row of a dot plot."""

    slot: int
    name: str
    metric: Metric


def dot_plot(title: str, rows: list[tuple[tuple[str, str], list[Dot]]], measure: str) -> str:
    """Values in [0, 1] with interval whiskers, one band per row and one line per method inside it."""
    place, top, y = svg.scale(0, 1, 8, WIDTH - 8), 24.0, 24.0
    parts, told = [], []
    for (name, kind), dots in rows:
        parts.append(label(WIDTH - 2, y + 12, kind, "end", "t axis"))
        parts.append(label(2, y + 12, name, class_="t row", limit=32))
        y += 13
        for dot in dots:
            y += 10.5
            if dot.metric.value is None:
                words = f"{dot.name}: {dot.metric.why_missing()}"
                parts.append(label(8, y + 4, words, class_="t gone", limit=50))
                told.append(f"{name}, {words}")
                continue
            x = place(min(1, max(0, dot.metric.value)))
            if dot.metric.low is not None and dot.metric.high is not None:
                parts.append(svg.whisker(place(dot.metric.low), y, place(dot.metric.high), y, dot.slot))
            words = f"{number(dot.metric.value)} {interval(dot.metric.low, dot.metric.high)}".strip()
            parts.append(svg.mark(x, y, dot.slot, f"{name}, {dot.name}: {measure} {words}"))
            told.append(f"{name}, {dot.name}: {words}")
        y += 12
    axis = svg.x_axis([0, 0.25, 0.5, 0.75, 1], place, top, y, measure)
    body = label(0, 13, title, class_="t head") + axis + "".join(parts)
    return figure(f"{measure} by domain, {title}", "; ".join(told) or "no values", y + 32, body)


@dataclass(frozen=True)
class Spot:
    """A cell in the scatter; `front`: no other is better or equal in both and better in one."""

    slot: int
    name: str
    x: Metric
    y: Metric
    front: bool = False


def scatter(title: str, spots: list[Spot], x_range: tuple[float, float], names: tuple[str, str]) -> str:
    """A toxicity in [0, 1] against what it is paid for with, both better when lower: marks with their intervals, those
    on the Pareto front ringed and joined by steps."""
    height, left, right, top, bottom = 300, 34, WIDTH - 10, 44, 262
    logarithmic = x_range[1] > 8 * x_range[0] > 0
    x_place = svg.scale(*x_range, left, right, logarithmic)
    y_place = svg.scale(0, 1, bottom - 8, top + 12)  # room for names above 1 and below 0
    marks = svg.log_ticks(*x_range) if logarithmic else svg.ticks(*x_range)
    body = label(0, 13, title, class_="t head")
    body += svg.y_axis([0, 0.25, 0.5, 0.75, 1], y_place, left, right, names[1], 32)
    body += svg.x_axis(marks, x_place, top, bottom, names[0] + (" (log scale)" if logarithmic else ""), right)
    drawn = [spot for spot in spots if spot.x.value is not None and spot.y.value is not None]
    inside = [(x_place(spot.x.value or 0.0), y_place(spot.y.value or 0.0)) for spot in drawn]
    told = []
    for (x, y), spot in zip(inside, drawn, strict=True):
        if spot.y.low is not None and spot.y.high is not None:
            body += svg.whisker(x, y_place(spot.y.low), x, y_place(spot.y.high), spot.slot)
        if spot.x.low is not None and spot.x.high is not None:
            low, high = max(spot.x.low, x_range[0]), min(spot.x.high, x_range[1])
            body += svg.whisker(x_place(low), y, x_place(high), y, spot.slot)
    best = sorted({at for at, spot in zip(inside, drawn, strict=True) if spot.front})
    body += svg.steps(best, top, right) if best else ""
    for (x, y), spot in zip(inside, drawn, strict=True):
        words = f"{spot.name}: {names[0]} {number(spot.x.value)}, {names[1]} {number(spot.y.value)}"
        words += " (on the front)" if spot.front else ""
        body += svg.mark(x, y, spot.slot, words, 5) + (svg.ring(x, y) if spot.front else "")
        told.append(words)
    body += svg.placed_labels(
        [spot.name for spot in drawn],
        inside,
        (left - 4, top - 12, WIDTH, bottom),
        [spot.front for spot in drawn],
    )
    return figure(f"{names[1]} against {names[0]}, {title}", "; ".join(told) or "no values", height, body)


@dataclass(frozen=True)
class Trial:
    """One cell of the heat map; `value` is None when the trial failed or was not run (`note` says which)."""

    steps: int
    lr: float
    value: float | None
    note: str = ""
    chosen: bool = False


def heat_map(title: str, trials: list[Trial], measure: str) -> str:
    """Steps down, learning rates across; stronger is higher, the chosen cell has a frame and a star."""
    steps, rates = sorted({t.steps for t in trials}), sorted({t.lr for t in trials})
    left, top, tall = 62.0, 52.0, 24.0
    wide = min(86.0, (WIDTH - left - 2) / max(1, len(rates)))
    values = [t.value for t in trials if t.value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    body = label(0, 13, title, class_="t head") + label(0, top - 6, "steps", class_="t axis")
    body += label(left + wide * len(rates), top - 20, "learning rate", "end", "t axis")
    told, frame = [], ""
    by_place = {(t.steps, t.lr): t for t in trials}
    for column, lr in enumerate(rates):
        body += label(left + (column + 0.5) * wide, top - 6, rate(lr), "middle", "t tick")
    for line, step in enumerate(steps):
        y = top + line * tall
        body += label(left - 8, y + 16, count(step), "end", "t tick")
        for column, lr in enumerate(rates):
            trial = by_place.get((step, lr), Trial(step, lr, None, "not run"))
            box: dict[str, Any] = {
                "x": left + column * wide + 1,
                "y": y + 1,
                "width": wide - 2,
                "height": tall - 2,
                "rx": 2,
            }
            middle = left + (column + 0.5) * wide
            words = f"{count(step)} steps, learning rate {rate(lr)}: "
            if trial.value is None:
                body += element("rect", class_="empty", **box) + label(
                    middle, y + 16, trial.note, "middle", "t gone"
                )
                told.append(words + trial.note)
                continue
            share = 0.5 if high == low else (trial.value - low) / (high - low)
            words += f"{measure} {number(trial.value)}" + (" (chosen)" if trial.chosen else "")
            tip = element("title", svg.escape(words))
            body += element("rect", tip, class_="heat", fill_opacity=0.04 + 0.46 * share, **box)
            shown = number(trial.value) + (" ★" if trial.chosen else "")
            body += label(middle, y + 16, shown, "middle", "t value strong" if trial.chosen else "t value")
            if trial.chosen:
                frame = element("rect", class_="chosen", **box)
            told.append(words)
    return figure(
        f"{title}: {measure} by steps and learning rate",
        "; ".join(told),
        top + len(steps) * tall + 6,
        body + frame,
    )


@dataclass(frozen=True)
class Line:
    """A line of a line chart: points in ascending x."""

    slot: int
    name: str
    points: list[tuple[float, float]]


def line_chart(
    title: str,
    lines: list[Line],
    names: tuple[str, str],
    y_range: tuple[float, float] | None = None,
    dots: bool = False,
    logarithmic: tuple[bool, bool] = (False, False),
) -> str:
    """Lines over a shared x; `dots` marks every point, not only the last (few points, each measured).

    logarithmic: the axis of x, of y; all values of such an axis are above 0.
    """
    height, left, right, top, bottom = 220, 34, WIDTH - 10, 44, 182
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return figure(
            title, "no values", 40, label(0, 13, title, class_="t head") + label(0, 32, "no values")
        )
    low, high = y_range or ((min(ys), max(ys)) if logarithmic[1] else padded(min(ys), max(ys)))
    x_place = svg.scale(min(xs), max(xs), left, right, logarithmic[0])
    y_place = svg.scale(low, high, bottom, top, logarithmic[1])
    x_ticks, y_ticks = (svg.log_ticks if log else svg.ticks for log in logarithmic)
    body = label(0, 13, title, class_="t head")
    body += svg.y_axis(y_ticks(low, high), y_place, left, right, names[1], 32)
    body += svg.x_axis(x_ticks(min(xs), max(xs)), x_place, top, bottom, names[0], right)
    told = []
    for line in lines:
        placed = [(x_place(x), y_place(y)) for x, y in line.points]
        words = f"{line.name}: {names[1]} {number(line.points[0][1])} to {number(line.points[-1][1])}"
        body += svg.path(placed, line.slot, words)
        if not dots:
            body += svg.mark(*placed[-1], line.slot, words)
        else:
            for (x, y), (raw_x, raw_y) in zip(placed, line.points, strict=True):
                tip = f"{line.name}, {names[0]} {count(raw_x)}: {names[1]} {number(raw_y)}"
                body += svg.mark(x, y, line.slot, tip, 3.5)
        told.append(words)
    return figure(f"{title}: {names[1]} by {names[0]}", "; ".join(told), height, body)


def histogram(title: str, bins: list[tuple[int, int, int]], names: tuple[str, str]) -> str:
    """Bars of (from, to exclusive, rows)."""
    height, left, right, top, bottom = 190, 34, WIDTH - 10, 44, 152
    most = max(rows for _, _, rows in bins)
    x_place = svg.scale(bins[0][0], bins[-1][1], left, right)
    y_place = svg.scale(0, most, bottom, top)
    body = label(0, 13, title, class_="t head")
    body += svg.y_axis(svg.ticks(0, most), y_place, left, right, names[1], 32)
    body += svg.x_axis(svg.ticks(bins[0][0], bins[-1][1]), x_place, bottom, bottom, names[0], right)
    for start, end, rows in bins:
        x, y = x_place(start), y_place(rows)
        tip = element("title", svg.escape(f"{count(start)} to {count(end - 1)}: {count(rows)} {names[1]}"))
        body += element(
            "rect", tip, x=x + 0.5, y=y, width=max(0.5, x_place(end) - x - 1), height=bottom - y, class_="bar"
        )
    peak = max(bins, key=lambda item: item[2])
    told = f"{len(bins)} bins; the fullest, {peak[0]} to {peak[1] - 1}, holds {peak[2]}"
    return figure(f"{title}: {names[1]} by {names[0]}", told, height, body)


def bins(values: tuple[int, ...], most: int = 20) -> list[tuple[int, int, int]]:
    """At most `most` + 1 bins of one whole width over the values: (from, to exclusive, how many)."""
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / most))
    start = low - low % width
    found = dict.fromkeys(range(start, high + 1, width), 0)
    for value in values:
        found[value - value % width] += 1
    return [(at, at + width, rows) for at, rows in found.items()]


def padded(low: float, high: float) -> tuple[float, float]:
    """A range a little wider than [low, high], never empty; it starts at 0 when 0 is near."""
    span = (high - low) or abs(high) or 1.0
    bottom = 0.0 if 0 <= low <= span else low - 0.05 * span
    return bottom, high + 0.05 * span
