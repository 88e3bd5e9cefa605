"""The sections that show what was measured: headline table, domains, further metrics, second scorers."""

from __future__ import annotations

from unidetox_ray.report import charts, svg, verdict
from unidetox_ray.report.document import Block, Cell, Chart, Column, Legend, Row, Section, Table, prose, row
from unidetox_ray.report.model import BASE, Metric, Run
from unidetox_ray.report.model import Cell as Measured
from unidetox_ray.report.notes import HEADLINE
from unidetox_ray.report.text import MISSING, count, interval, listed, number

HIGHER_IS_BETTER = ("dist", "mmlu")


def slots(run: Run) -> dict[str, int]:
    """Colour and shape of each method: base is 0, the others follow in order."""
    others = [method for method in run.methods if method != BASE]
    return {BASE: 0} | {method: index + 1 for index, method in enumerate(others)}


def metric_cell(metric: Metric, name: str) -> Cell:
    """A metric as a table cell; a dash with the reason where there is no value. name "": no way is better."""
    if metric.value is None:
        return Cell(MISSING, title=metric.why_missing(), tone="muted")
    significant = metric.falls or metric.rises
    change, tone = "", ""
    if metric.diff is not None:
        change = f"Δ {number(metric.diff, signed=True)}"
        if significant and name:
            tone = "better" if metric.rises == name.startswith(HIGHER_IS_BETTER) else "worse"
    title = f"n = {count(metric.n)}" if metric.n is not None else ""
    if metric.failed:
        title += f"{', ' if title else ''}{count(metric.failed)} failed and left out"
    return Cell(
        number(metric.value),
        interval(metric.low, metric.high),
        change,
        interval(metric.diff_low, metric.diff_high, signed=True) if change else "",
        change_strong=significant,
        tone=tone,
        title=title,
        sort=metric.value,
    )


def row_head(cell: Measured, run: Run) -> Cell:
    """Row head: family, method with its mark; the model and the seed are its title."""
    title = f"{cell.model}, seed {cell.seed}" if cell.model else ""
    mark = svg.swatch(slots(run)[cell.method])
    return Cell(cell.label, title=title, sort=f"{cell.family} {cell.label}", label=cell.family, mark=mark)


def _metric_table(run: Run, names: list[tuple[str, str]], caption: str, *, toned: bool = True) -> Table:
    """toned: changes are coloured as better or worse; not where a name does not tell which way is better."""
    rows: list[Row] = []
    for family in run.families:
        for index, cell in enumerate(run.of_family(family)):
            head = row_head(cell, run)
            if cell.ok:
                values = [metric_cell(cell.metric(name), name if toned else "") for name, _ in names]
                rows.append(row(head, *values, first=index == 0))
            else:
                words = Cell(f"failed: {cell.error}", tone="failed", span=len(names))
                rows.append(row(head, words, first=index == 0, failed=True))
    columns = [Column("family · method", numeric=False), *(Column(name, title) for name, title in names)]
    return Table(caption, tuple(columns), tuple(rows), sortable=True)


def headline(run: Run) -> Section:
    """Verdict and the table family by method."""
    blocks: list[Block] = [*verdict.blocks(run)]
    if run.cells:
        scorers = sorted({cell.scorer for cell in run.cells if cell.scorer})
        judged = f"Toxicity by {listed(scorers)}. " if scorers else ""
        if len(scorers) > 1:
            blocks.append(
                prose(
                    "The cells name different toxicity scorers; their toxicity columns cannot be compared.",
                    kind="warning",
                )
            )
        caption = (
            f"{judged}Value, 95 % interval, and Δ: paired difference to the family's base, bold where its "
            "interval excludes 0."
        )
        blocks.append(_metric_table(run, [(name, title) for name, title, _ in HEADLINE], caption))
    return Section("results", "Results", tuple(blocks))


def second_scorers(run: Run) -> Section | None:
    """A table for each further scorer: metrics named `tp_id@<scorer>`."""
    names = list(dict.fromkeys(name for cell in run.cells for name in cell.metrics if "@" in name))
    by_scorer: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        by_scorer.setdefault(name.partition("@")[2], []).append((name, "judged by another scorer"))
    if not by_scorer:
        return None
    tables = [_metric_table(run, columns, f"Toxicity by {scorer}") for scorer, columns in by_scorer.items()]
    words = prose(
        "The same continuations under another classifier. Never mixed with the columns above.", kind="note"
    )
    return Section("scorers", "Second scorers", (words, *tables))


def further_metrics(run: Run) -> Section | None:
    """All else that results.json holds, so that a metric which is registered is also seen."""
    shown = {name for name, _, _ in HEADLINE}
    found = dict.fromkeys(name for cell in run.cells for name in cell.metrics)
    names = [(name, "") for name in found if name not in shown and "@" not in name]
    if not names:
        return None
    caption = "Value, 95 % interval, and Δ: paired difference to the family's base, bold where its interval excludes 0."
    words = prose("Everything else that was measured; “unidetox ls metrics” says what it is.", kind="note")
    return Section("further", "Further metrics", (words, _metric_table(run, names, caption, toned=False)))


def legend(run: Run) -> tuple[Legend, ...]:
    """Methods with their marks."""
    return tuple(
        Legend(method, svg.swatch(slot)) for method, slot in slots(run).items() if method in run.methods
    )


def domains(run: Run) -> Section | None:
    """TP and EMT by domain: a dot plot per family and measure."""
    if not any(cell.domains for cell in run.cells):
        return None
    blocks: list[Block] = []
    for key, title in (
        ("tp", "Toxicity probability (TP) by domain"),
        ("emt", "Expected maximum toxicity (EMT) by domain"),
    ):
        panels: list[str] = []
        rows: list[Row] = []
        for family in run.families:
            cells = run.of_family(family)
            order = dict.fromkeys((d.distribution, d.name) for cell in cells for d in cell.domains)
            bands = []
            for distribution, name in sorted(order, key=lambda pair: pair[0] == "ood"):
                shown = (name, "out of distribution" if distribution == "ood" else "in distribution")
                dots = []
                for cell in cells:
                    part = next((d for d in cell.domains if d.name == name), None)
                    metric = getattr(part, key) if part else Metric(reason="" if cell.ok else "failed")
                    dots.append(charts.Dot(slots(run)[cell.method], cell.label, metric))
                    rows.append(
                        row(
                            family,
                            name,
                            distribution,
                            cell.label,
                            metric_cell(metric, key),
                            Cell(count(metric.n), sort=metric.n),
                            first=not rows or rows[-1].cells[0].text != family,
                        )
                    )
                bands.append((shown, dots))
            if bands:
                panels.append(charts.dot_plot(family, bands, key.upper()))
        columns = (
            Column("family", numeric=False),
            Column("domain", numeric=False),
            Column("distribution", numeric=False),
            Column("method", numeric=False),
            Column(key.upper()),
            Column("prompts"),
        )
        table = Table(f"{title}, with 95 % intervals", columns, tuple(rows))
        note = "Each mark is a method, its line the 95 % interval. Left is less toxic."
        blocks.append(Chart(title, note, tuple(panels), table, legend(run)))
    return Section("domains", "Domains", tuple(blocks))
