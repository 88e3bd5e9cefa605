"""A document as GitHub-flavoured Markdown: charts become tables, and no text can form markup or a link."""

from __future__ import annotations

import re

from unidetox_ray.report import document as doc

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
_ALWAYS = re.compile(r"[\\`*\[\]~$]")
_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_AUTOLINK = re.compile(r"(?<=[A-Za-z]):(?=\S)|(?i:(?<=www)\.)")
_LINE_START = re.compile(r"^(\s*)([-+#=]|\d+(?=[.)]))")


def escape(text: str) -> str:
    """Text that renders as itself: one line, no emphasis, link, HTML, table cell border, list or heading."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    line = _ALWAYS.sub(lambda found: "\\" + found[0], line)
    line = _UNDERSCORE.sub(r"\\_", line)
    line = _AUTOLINK.sub(lambda found: "\\" + found[0], line)
    line = "".join(_ENTITIES.get(char, char) for char in line)
    start = _LINE_START.match(line)
    if start and start[2][0].isdigit():
        return line[: start.end()] + "\\" + line[start.end() :]
    return line[: start.start(2)] + "\\" + line[start.start(2) :] if start else line


def render(document: doc.Document) -> str:
    """The whole document, ending in one line feed."""
    parts = [f"# {escape(document.title)}", escape(document.subtitle)]
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _strong(text: str) -> str:
    return f"**{escape(text)}**"


def _block(block: doc.Block) -> str:
    match block:
        case doc.Prose(parts, kind):
            words = ""
            for part in parts:
                raw = part[0] if isinstance(part, tuple) else part
                before, after = raw[: len(raw) - len(raw.lstrip())], raw[len(raw.rstrip()) :]
                core = _strong(raw) if isinstance(part, tuple) else _inner(raw.strip(), first=not words)
                words += before + core + after
            return f"> {words}" if kind == "warning" else words.strip()
        case doc.Points(items):
            return "\n".join(f"- {_strong(term)}: {_inner(said)}" for term, said in items)
        case doc.Facts(caption, items):
            rows = [doc.row(key, value) for key, value in items]
            columns = (doc.Column("setting", numeric=False), doc.Column("value", numeric=False))
            return _table(doc.Table(caption, columns, tuple(rows)))
        case doc.Code(text, language):
            longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}{language}\n{text.rstrip()}\n{fence}"
        case doc.Table():
            return _table(block)
        case doc.Chart():
            return f"### {escape(block.title)}\n\n{_inner(block.note)}\n\n{_table(block.table)}"
    raise TypeError(f"no rendering for {type(block).__name__}")


def _inner(text: str, first: bool = False) -> str:
    """Escaped text inside a line; only at a line's start can a dash or figure begin a list."""
    return escape(text) if first else escape("x" + text)[1:]


def _table(table: doc.Table) -> str:
    heads = " | ".join(_inner(column.name) or " " for column in table.columns)
    rules = " | ".join("---:" if column.numeric and at else ":---" for at, column in enumerate(table.columns))
    lines = [f"{_strong(table.caption)}", "", f"| {heads} |", f"| {rules} |"]
    for row in table.rows:
        shown: list[str] = []
        for cell in row.cells:
            shown += [_cell(cell)] + [""] * (cell.span - 1)
        lines.append("| " + " | ".join(shown) + " |")
    reasons = doc.withheld(table)
    if reasons:
        lines += ["", *(f"- {_inner(reason)}" for reason in reasons)]
    return "\n".join(lines)


def _cell(cell: doc.Cell) -> str:
    words = _inner(f"{cell.label} · {cell.text}" if cell.label else cell.text)
    words = f"**{words}**" if cell.strong and words else words
    if cell.interval:
        words += " " + _inner(cell.interval)
    if cell.change:
        change = f"{cell.change} {cell.change_interval}".strip()
        words += "; " + (_strong(change) if cell.change_strong else _inner(change))
    return words
