"""Small helpers that write inline SVG: elements, scales, axes, marks.

Colours come from CSS variables that `style` defines for light and dark; a mark's class `s0` … `s7` picks its
colour and its position among the methods picks its shape, so colour is never the only sign. Every text that
enters an SVG passes through `label` or `element` here and is escaped. Lengths are in SVG user units; a panel
is `WIDTH` wide and scales with its column, so 11 units stay readable on a phone 360 px wide.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from html import escape

from unidetox_ray.report.text import MINUS, clean, number

WIDTH = 320
COLOURS = 8
Points = list[tuple[float, float]]
Place = Callable[[float], float]


def element(name: str, content: str = "", **attributes: object) -> str:
    """`<name a="b">content</name>`; values are escaped; `class_` and `text_anchor` become HTML names."""
    pairs = []
    for key, value in attributes.items():
        shown = f"{value:.5g}" if isinstance(value, float) else str(value)
        pairs.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return f"<{name}{''.join(pairs)}>{content}</{name}>" if content else f"<{name}{''.join(pairs)}/>"


def label(x: float, y: float, words: str, anchor: str = "start", class_: str = "t", limit: int = 48) -> str:
    """Text, escaped and cut to `limit` characters; the whole of a longer text is its tooltip."""
    whole = clean(words)
    tip = f"<title>{escape(whole)}</title>" if len(whole) > limit else ""
    return element("text", escape(clean(words, limit)) + tip, x=x, y=y, text_anchor=anchor, class_=class_)


def figure(title: str, description: str, height: float, body: str, width: float = WIDTH) -> str:
    """A complete `<svg>` with an accessible title and description, tied by ids unique to its content."""
    digest = hashlib.sha256((title + description + body).encode("utf-8", "replace")).hexdigest()[:10]
    heads = element("title", escape(clean(title)), id=f"t{digest}")
    heads += element("desc", escape(clean(description)), id=f"d{digest}")
    return element(
        "svg",
        heads + body,
        viewBox=f"0 0 {width:.5g} {height:.5g}",
        role="img",
        aria_labelledby=f"t{digest} d{digest}",
        class_="chart",
        preserveAspectRatio="xMidYMin meet",
    )


def scale(low: float, high: float, start: float, end: float, logarithmic: bool = False) -> Place:
    """A function from [low, high] to [start, end]; a constant domain maps to the middle."""
    turn = math.log10 if logarithmic else float
    bottom, top = turn(low), turn(high)
    span = top - bottom
    if span == 0:
        return lambda value: (start + end) / 2
    return lambda value: start + (turn(value) - bottom) / span * (end - start)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) inside [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten inside [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def tick_text(value: float) -> str:
    """A tick's number without needless zeros: 0, 0.25, 1, 20, 1k, 2.5k."""
    if abs(value) >= 1000:
        return f"{value / 1000:g}k".replace("-", MINUS)
    return f"{value:g}".replace("-", MINUS) if abs(value) >= 1e-3 or value == 0 else number(value)


def x_axis(
    values: list[float], place: Place, top: float, bottom: float, name: str = "", right: float = WIDTH
) -> str:
    """Vertical grid lines with numbers below and the axis' name under them."""
    parts = []
    for value in values:
        x = place(value)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(label(x, bottom + 13, tick_text(value), "middle", "t tick"))
    return "".join(parts) + (label(right, bottom + 27, name, "end", "t axis") if name else "")


def y_axis(
    values: list[float], place: Place, left: float, right: float, name: str = "", top: float = 0
) -> str:
    """Horizontal grid lines with numbers to the left and the axis' name above them."""
    parts = []
    for value in values:
        y = place(value)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(label(left - 5, y + 3.5, tick_text(value), "end", "t tick"))
    return "".join(parts) + (label(0, top, name, "start", "t axis") if name else "")


def mark(x: float, y: float, slot: int, tip: str = "", size: float = 4.2) -> str:
    """The mark of the method at `slot`: circle, square, diamond, triangle, then again in other colours, then hollow."""
    inner = f"<title>{escape(clean(tip))}</title>" if tip else ""
    class_ = f"mark{' hollow' if slot // COLOURS % 2 else ''} s{slot % COLOURS}"
    if slot % 4 == 0:
        return element("circle", inner, cx=x, cy=y, r=size, class_=class_)
    if slot % 4 == 1:
        side = size * 0.92
        return element("rect", inner, x=x - side, y=y - side, width=2 * side, height=2 * side, class_=class_)
    reach = size * 1.3
    corners = [(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)]
    if slot % 4 == 3:
        corners = [(x, y - reach), (x + reach, y + size), (x - reach, y + size)]
    return element("polygon", inner, points=_joined(corners), class_=class_)


def swatch(slot: int) -> str:
    """A legend's mark as its own little SVG, decorative to a screen reader."""
    return element(
        "svg", mark(9, 7, slot), viewBox="0 0 18 14", class_="swatch", aria_hidden="true", width=18, height=14
    )


def path(points: Points, slot: int, tip: str = "") -> str:
    """A line through points in a method's colour."""
    inner = f"<title>{escape(clean(tip))}</title>" if tip else ""
    return element("polyline", inner, points=_joined(points), class_=f"line s{slot % COLOURS}")


def whisker(x1: float, y1: float, x2: float, y2: float, slot: int) -> str:
    """A confidence interval's line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=f"whisker s{slot % COLOURS}")


def ring(x: float, y: float, size: float = 8.5) -> str:
    """A circle around a mark that stands out."""
    return element("circle", cx=x, cy=y, r=size, class_="ring")


def steps(points: Points, top: float, right: float) -> str:
    """The border of what points that are better to the left and below leave behind them: down from `top`, in steps
    through the points in ascending x, and on to `right`."""
    (x, _), *_ = points
    corners = [(x, top)]
    for x, y in points:
        corners += [(x, corners[-1][1]), (x, y)]
    return element("polyline", points=_joined([*corners, (right, corners[-1][1])]), class_="front")


Box = tuple[float, float, float, float]  #: left, top, right, bottom


def placed_labels(names: list[str], at: Points, within: Box, strong: list[bool], limit: int = 20) -> str:
    """Names beside their points, where there is room that no mark and no earlier name takes; the others go unnamed."""
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    parts = []
    for name, (x, y), bold in sorted(
        zip(names, at, strong, strict=True), key=lambda item: not item[2]
    ):  # the strong ones first
        wide = (6.4 if bold else 5.9) * min(len(clean(name)), limit)
        for anchor, left, base in (  # beside the lines of its intervals first, on them last
            ("start", x + 7, y - 6), ("start", x + 7, y + 15), ("end", x - 7 - wide, y - 6), ("end", x - 7 - wide, y + 15),
            ("middle", x - wide / 2, y - 11), ("middle", x - wide / 2, y + 19),
            ("start", x + 10, y + 4), ("end", x - 10 - wide, y + 4),
        ):  # fmt: skip
            box = (left, base - 9, left + wide, base + 2)
            inside = (
                box[0] >= within[0] and box[1] >= within[1] and box[2] <= within[2] and box[3] <= within[3]
            )
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = {"start": left, "middle": left + wide / 2, "end": left + wide}[anchor]
                parts.append(label(place, base, name, anchor, "t spot strong" if bold else "t spot", limit))
                break
    return "".join(parts)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _joined(points: Points) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
