"""A document as one self-contained HTML page: no request, no external font or script, light and dark.

Every string of the document is escaped here; only SVG made by `svg` and `charts` goes in as it is. A content
security policy allows the one inline script by its hash, so that a text that slipped through could not run.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape as _escape

from unidetox_ray.report import document as doc
from unidetox_ray.report.style import CSS, JS

LONG_TEXT = 40


def escape(text: str) -> str:
    """Text for element content or a quoted attribute; lone surrogates become "?"."""
    return _escape(text.encode("utf-8", "replace").decode("utf-8"), quote=True)


_FOOTER = (
    "Made by unidetox_ray from the files of the run folder. The same content is in the Markdown beside it."
)


def render(document: doc.Document, *, footer: str = _FOOTER) -> str:
    """The whole page."""
    digest = base64.b64encode(hashlib.sha256(JS.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in document.sections)
    sections = "\n".join(_section(section) for section in document.sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="robots" content="noindex">\n'
        f"<title>{escape(document.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(document.title)}</h1>\n<p class="sub">{escape(document.subtitle)}</p>\n'
        f'<nav aria-label="Sections">{links}</nav></header>\n<main>\n{sections}\n</main>\n'
        f"<footer>{escape(footer)}</footer>\n<script>{JS}</script>\n</body>\n</html>\n"
    )


def _section(section: doc.Section) -> str:
    body = "\n".join(_block(block) for block in section.blocks)
    return f'<section id="{section.key}">\n<h2>{escape(section.title)}</h2>\n{body}\n</section>'


def _block(block: doc.Block) -> str:
    match block:
        case doc.Prose(parts, kind):
            words = "".join(_strong(part[0]) if isinstance(part, tuple) else escape(part) for part in parts)
            return f"<p{_class(kind)}>{words}</p>"
        case doc.Points(items):
            pairs = "".join(f"<dt>{escape(term)}</dt><dd>{escape(said)}</dd>" for term, said in items)
            return f'<dl class="points">{pairs}</dl>'
        case doc.Facts(caption, items):
            pairs = "".join(
                f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in items
            )
            kind = "wide" if any(len(value) > 60 for _, value in items) else ""
            return f'<div class="facts"><h3>{escape(caption)}</h3><dl{_class(kind)}>{pairs}</dl></div>'
        case doc.Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case doc.Table():
            return _table(block)
        case doc.Chart():
            return _chart(block)
    raise TypeError(f"no rendering for {type(block).__name__}")


def _strong(text: str) -> str:
    return f"<b>{escape(text)}</b>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _chart(chart: doc.Chart) -> str:
    entries = "".join(f"<li>{entry.mark}{escape(entry.label)}</li>" for entry in chart.legend)
    legend = f'<ul class="legend">{entries}</ul>' if entries else ""
    panels = "".join(f"<div>{panel}</div>" for panel in chart.panels)
    return (
        f'<figure><figcaption><h3>{escape(chart.title)}</h3><p class="note">{escape(chart.note)}</p>'
        f"</figcaption>{legend}"
        f'<div class="panels{" wide" if chart.wide else ""}">{panels}</div><details><summary>The numbers as a table</summary>'
        f"{_table(chart.table)}</details></figure>"
    )


def _table(table: doc.Table) -> str:
    heads = "".join(
        f'<th scope="col"{_class("n" if column.numeric else "")}{_title(column.title)}>'
        f"{escape(column.name)}</th>"
        for column in table.columns
    )
    kind = _class("sortable" if table.sortable else "")
    rows = "\n".join(_row(row, table) for row in table.rows)
    name = escape(table.caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table{kind}>'
        f"<caption><span>{name}</span></caption><thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>{_reasons(table)}"
    )


def _reasons(table: doc.Table) -> str:
    reasons = doc.withheld(table)
    if not reasons:
        return ""
    shown = "; ".join(reasons[:12]) + (f"; and {len(reasons) - 12} more" if len(reasons) > 12 else "")
    return f'<p class="note">No value for {escape(shown)}.</p>'


def _row(row: doc.Row, table: doc.Table) -> str:
    cells, at = [], 0
    for cell in row.cells:
        cells.append(_cell(cell, table.columns[min(at, len(table.columns) - 1)], head=at == 0))
        at += cell.span
    failed = " data-failed" if row.failed else ""
    return f"<tr{_class('first' if row.first else '')}{failed}>{''.join(cells)}</tr>"


def _title(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""


def _cell(cell: doc.Cell, column: doc.Column, head: bool) -> str:
    sort = cell.sort if cell.sort is not None or column.numeric else cell.text
    attributes = ""
    if sort is not None:
        attributes += f' data-v="{escape(str(sort))}"' + (" data-s" if isinstance(sort, str) else "")
    attributes += f' colspan="{cell.span}"' if cell.span > 1 else ""
    attributes += ' scope="row"' if head else ""
    long = not column.numeric and not head and len(cell.text) > LONG_TEXT
    kinds = ("n" if column.numeric else "", cell.tone, "long" if long else "")
    names = " ".join(kind for kind in kinds if kind)
    words = _strong(cell.text) if cell.strong else escape(cell.text)
    if cell.tone == "failed":
        words = f"<span>{words}</span>"
    named = f'<span class="name">{cell.mark}<i>{words}</i></span>' if cell.mark else words
    body = (f'<span class="fam">{escape(cell.label)}</span>' if cell.label else "") + named
    if cell.interval:
        body += f' <span class="ci">{escape(cell.interval)}</span>'
    if cell.change:
        change = _strong(cell.change) if cell.change_strong else escape(cell.change)
        body += f' <span class="diff">{change}</span>'
    if cell.change_interval:
        body += f' <span class="ci">{escape(cell.change_interval)}</span>'
    name = "th" if head else "td"
    return f"<{name}{_class(names)}{_title(cell.title)}{attributes}>{body}</{name}>"
