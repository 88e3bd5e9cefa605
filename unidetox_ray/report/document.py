"""The report as data: sections of blocks in plain text, which `html` and `markdown` render.

Both outputs come from the same blocks, so they cannot disagree. All strings are plain, unescaped text;
the renderers escape every one of them. The single exception is `Chart.panels` and `Legend.mark`: SVG that
`svg` and `charts` made and in which they have escaped every text themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unidetox_ray.report.text import MISSING

Tone = str  #: "", "better", "worse", "failed" or "muted"


@dataclass(frozen=True)
class Cell:
    """One table cell: its text, an optional interval and change below it, and what it sorts by."""

    text: str
    interval: str = ""
    change: str = ""
    change_interval: str = ""
    change_strong: bool = False
    tone: Tone = ""
    title: str = ""
    sort: float | str | None = None
    label: str = ""
    mark: str = ""
    span: int = 1
    strong: bool = False


@dataclass(frozen=True)
class Column:
    """A column head; `title` explains it, `numeric` aligns it to the right."""

    name: str
    title: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """A table row. `first` starts a group; `failed` rows sort last."""

    cells: tuple[Cell, ...]
    first: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Table:
    """A table in its own scrolling box; the first column heads the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sortable: bool = False


@dataclass(frozen=True)
class Legend:
    """One entry of a chart's legend; `mark` is trusted SVG."""

    label: str
    mark: str


@dataclass(frozen=True)
class Chart:
    """Small multiples of trusted SVG with the numbers behind them; Markdown shows the table instead."""

    title: str
    note: str
    panels: tuple[str, ...]
    table: Table
    legend: tuple[Legend, ...] = ()
    wide: bool = False
    """Each panel as wide as the page."""


@dataclass(frozen=True)
class Prose:
    """A paragraph. A part that is a one-tuple is strong: ("unidetox",)."""

    parts: tuple[str | tuple[str], ...]
    kind: str = ""  #: "", "lead", "note" or "warning"


@dataclass(frozen=True)
class Points:
    """Terms and what is said of each."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facts:
    """Short key-value pairs shown as a dense box."""

    caption: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    text: str
    language: str = ""


Block = Prose | Points | Facts | Code | Table | Chart


@dataclass(frozen=True)
class Section:
    """A heading with its blocks; `key` is its anchor, plain lower-case letters."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    facts: tuple[tuple[str, str], ...] = field(default=())


def withheld(table: Table) -> list[str]:
    """`row, column: reason` for every dash of a table that has a reason: a touch screen shows no tooltips."""
    found: dict[str, None] = {}
    for line in table.rows:
        at = 0
        for cell in line.cells:
            if cell.text == MISSING and cell.title:
                place = " ".join(part for part in (line.cells[0].label, line.cells[0].text) if part)
                found[f"{place}, {table.columns[min(at, len(table.columns) - 1)].name}: {cell.title}"] = None
            at += cell.span
    return list(found)


def prose(*parts: str | tuple[str], kind: str = "") -> Prose:
    """Shorthand for a paragraph."""
    return Prose(parts, kind)


def row(*cells: Cell | str, first: bool = False, failed: bool = False) -> Row:
    """A row in which plain strings are allowed as cells."""
    return Row(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in cells), first, failed)
