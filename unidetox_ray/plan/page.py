"""A plan as one HTML page, from the report's own blocks: stages, Gantt chart, cells, memory, scaling, assumptions."""

from __future__ import annotations

from unidetox_ray.plan.result import BASELINE, GIB, Plan
from unidetox_ray.plan.scaling import Scaling
from unidetox_ray.report import charts, html, svg
from unidetox_ray.report.document import (
    Block,
    Cell,
    Chart,
    Column,
    Document,
    Facts,
    Legend,
    Section,
    Table,
    prose,
    row,
)
from unidetox_ray.report.text import MISSING, amount, clean, number, percent, plural, seconds

#: Lanes of a stage that are drawn.
_LANES = 16
_FOOTER = "Made by unidetox plan: computed from shapes and rates, not measured."


def render(plan: Plan, scaling: Scaling | None = None) -> str:
    """The whole page."""
    sections = [_summary(plan), _schedule(plan), _cells(plan)]
    if scaling is not None:
        sections.append(_scaling(scaling))
    sections.append(_assumptions(plan))
    subtitle = f"{plan.fleet.name}: {plan.fleet.rates.title} · computed, not measured"
    return html.render(
        Document(f"Plan: {clean(plan.experiment.name, 80)}", subtitle, tuple(sections)), footer=_FOOTER
    )


def _summary(plan: Plan) -> Section:
    blocks: list[Block] = [prose(problem, kind="warning") for problem in plan.problems]
    device = "GPU" if plan.fleet.gpu else "core"
    said = [f"{seconds(plan.seconds)} on {plural(plan.fleet.count, device)}"]
    if plan.speedup is not None:
        said.append(f"speed-up {number(plan.speedup)} over {BASELINE}, which takes {seconds(plan.baseline)}")
    blocks.append(prose(("; ".join(said),), ".", kind="lead"))
    items = [
        ("time", seconds(plan.seconds)), (f"{device}-hours at work", number(plan.device_hours)),
        (f"{device}-hours held", number(plan.rented_hours)), ("disk", f"{number(plan.disk / GIB)} GiB"),
        ("speed-up", number(plan.speedup)), ("efficiency", percent(plan.efficiency)),
    ]  # fmt: skip
    if plan.price is not None:
        items.append((f"cost at {plan.price:g} an hour", number(plan.price * plan.rented_hours)))
    if plan.baseline is None:
        items.append(("no baseline", plan.baseline_why))
    blocks.append(Facts("In all", tuple(items)))
    blocks.append(Facts("Parameters", tuple((name, amount(count)) for name, count in plan.models.items())))
    return Section("summary", "Summary", tuple(blocks))


def _schedule(plan: Plan) -> Section:
    slots = _slots(plan)
    rows = []
    for stage in plan.stages:
        rows.append(
            row(
                stage.stage, Cell(seconds(stage.start), sort=stage.start), Cell(seconds(stage.seconds), sort=stage.seconds), str(stage.lanes),
                Cell(number(stage.device_seconds / 3600), sort=stage.device_seconds), Cell(amount(stage.tokens), sort=stage.tokens),
                f"{stage.operations:.2e}" if stage.operations else MISSING, stage.bottleneck,
            )
        )  # fmt: skip
    heads = (
        Column("stage", numeric=False), Column("starts"), Column("takes"), Column("lanes", "actors, training groups, trials or tasks at once"),
        Column("device-hours"), Column("tokens"), Column("FLOP"), Column("held up by", "what most device-time beside the work goes to", numeric=False),
    )  # fmt: skip
    table = Table("Stages, one after another", heads, tuple(rows), sortable=True)
    marks = tuple(Legend(family or "all families", svg.swatch(slot)) for family, slot in slots.items())
    note = "A row per lane, that is an actor, a training group, a trial or a task, each holding its devices; stages follow one another."
    return Section(
        "schedule", "Schedule", (Chart("Gantt chart", note, (gantt(plan),), table, marks, wide=True), table)
    )


def gantt(plan: Plan) -> str:
    """SVG: a block of lanes per stage over the time of the whole run."""
    slots, wide, left, tall = _slots(plan), 960.0, 118.0, 9.0
    whole = max(plan.seconds, 1e-9)
    place = svg.scale(0, whole, left, wide - 12)
    body, y, told = "", 26.0, []
    for ran in plan.schedule.ran:
        lanes = max(1, min(ran.lanes, _LANES))
        body += svg.label(0, y + 8, ran.stage.name, limit=20)
        for lane in range(lanes):
            tip = svg.element(
                "title", svg.escape(f"{ran.stage.name}: held from {seconds(ran.start)} to {seconds(ran.end)}")
            )
            body += svg.element(
                "rect",
                tip,
                x=place(ran.start),
                y=y + lane * tall,
                width=max(0.6, place(ran.end) - place(ran.start)),
                height=tall - 1.5,
                class_="empty",
            )
        for bar in ran.bars:
            if bar.lane >= lanes:
                continue
            tip = svg.element(
                "title",
                svg.escape(f"{ran.stage.name} {bar.cell.name}: {seconds(bar.start)} to {seconds(bar.end)}"),
            )
            body += svg.element(
                "rect", tip, x=place(bar.start), y=y + bar.lane * tall, width=max(0.6, place(bar.end) - place(bar.start)), height=tall - 1.5,
                class_=f"mark s{slots.get(bar.cell.family, 0) % svg.COLOURS}",
            )  # fmt: skip
        if ran.lanes > lanes:
            body += svg.label(left, y + lanes * tall + 8, f"and {ran.lanes - lanes} further lanes")
            y += 12
        told.append(f"{ran.stage.name} {seconds(ran.seconds)}")
        y += lanes * tall + 7
    unit, length = _unit(whole)
    marks = svg.ticks(0, whole / length, 8)
    body = svg.x_axis(marks, lambda value: place(value * length), 18, y, unit, wide - 12) + body
    return svg.figure("Gantt chart of the plan", "; ".join(told), y + 34, body, wide)


def _slots(plan: Plan) -> dict[str, int]:
    return {
        family: slot for slot, family in enumerate(dict.fromkeys(cell.cell.family for cell in plan.cells))
    }


def _cells(plan: Plan) -> Section:
    rows = []
    for cell in plan.cells:
        memory = cell.memory
        parts = (
            memory.weights,
            memory.gradients,
            memory.optimiser,
            memory.activations,
            memory.cache,
            memory.logits,
            memory.other,
        )
        rows.append(
            row(
                cell.cell.stage, cell.cell.name if cell.cell.name != cell.cell.stage else MISSING, Cell(f"{cell.devices:g}", sort=cell.devices),
                Cell(number(cell.peak / GIB) if cell.peak else MISSING, sort=cell.peak, tone="" if cell.fits else "failed", title=cell.why),
                *(Cell(number(part / GIB) if part else MISSING, sort=part) for part in parts),
                Cell(number(cell.disk / GIB), sort=cell.disk), Cell(seconds(cell.seconds), sort=cell.seconds),
                Cell(number(cell.device_seconds / 3600), sort=cell.device_seconds),
                Cell("yes" if cell.fits else "no", tone="" if cell.fits else "failed", title=f"{cell.why}; {cell.remedy}".strip("; ")),
            )
        )  # fmt: skip
    heads = (
        Column("stage", numeric=False), Column("cell", numeric=False), Column("devices", "at once, at most"), Column("peak", "GiB of one process"),
        *(Column(name, "GiB") for name in ("weights", "gradients", "optimiser", "activations", "cache", "logits", "other")),
        Column("disk", "GiB that stay"), Column("takes", "from its first start to its last end"), Column("device-hours"), Column("fits", numeric=False),
    )  # fmt: skip
    note = prose(
        "Gradients and activations are not at their peak together: the peak counts the larger of the two.",
        kind="note",
    )
    return Section(
        "cells",
        "Cells and memory",
        (
            Table(
                "Every cell of every stage; memory in GiB of one process", heads, tuple(rows), sortable=True
            ),
            note,
        ),
    )


def _scaling(scaling: Scaling) -> Section:
    rows = []
    for size in scaling.sizes:
        rows.append(
            row(
                str(size.devices), str(size.workers), Cell(seconds(size.seconds), sort=size.seconds), number(size.speedup),
                percent(size.efficiency), f"{size.stage}: {size.bottleneck}",
            )
        )  # fmt: skip
    heads = (
        Column("devices"), Column("workers a cell"), Column("takes"), Column("speed-up"), Column("efficiency"), Column("held up by", numeric=False),
    )  # fmt: skip
    table = Table("The same experiment on more devices, simulated event by event", heads, tuple(rows))
    panels = (_log_chart(scaling, "time"), _log_chart(scaling, "efficiency"))
    marks = tuple(Legend(name, svg.swatch(slot)) for slot, name in enumerate(("planned", "perfect scaling")))
    note = "The devices and the time are on logarithmic axes. As many actors as devices; all families at once; the best number of workers a cell."
    return Section(
        "scaling",
        "Scaling",
        (
            prose(scaling.sentence, kind="lead"),
            Chart("Time and efficiency", note, panels, table, marks),
            table,
        ),
    )


def _log_chart(scaling: Scaling, what: str) -> str:
    """Time or efficiency over the devices."""
    if what == "time":
        unit, length = _unit(max(size.seconds for size in scaling.sizes))
        first = scaling.sizes[0].seconds * scaling.sizes[0].devices
        points = [(float(size.devices), max(size.seconds, 1e-9) / length) for size in scaling.sizes]
        ideal = [(float(size.devices), max(first / size.devices, 1e-9) / length) for size in scaling.sizes]
        lines = [charts.Line(0, "planned", points), charts.Line(1, "perfect scaling", ideal)]
        return charts.line_chart("Time", lines, ("devices", unit), dots=True, logarithmic=(True, True))
    points = [(float(size.devices), 100 * size.efficiency) for size in scaling.sizes]
    lines = [charts.Line(0, "planned", points)]
    names = ("devices", "efficiency, %")
    return charts.line_chart("Efficiency", lines, names, (0.0, 105.0), dots=True, logarithmic=(True, False))


def _unit(whole: float) -> tuple[str, float]:
    """The unit in which to show times up to `whole` seconds, and how many seconds it has."""
    if whole >= 7200:
        return "hours", 3600.0
    return ("minutes", 60.0) if whole >= 300 else ("seconds", 1.0)


def _assumptions(plan: Plan) -> Section:
    rates = plan.fleet.rates
    items = [(name, f"{source}") for name, source in rates.sources.items()]
    limits = [
        ("matrix products, fp32", f"{rates.matmul['fp32'] / 1e12:g} TFLOP/s"), ("matrix products, bf16", f"{rates.matmul['bf16'] / 1e12:g} TFLOP/s"),
        ("memory bandwidth", f"{rates.bandwidth / 1e9:g} GB/s"), ("memory", f"{rates.memory / GIB:.1f} GiB"),
        *((f"share of the products' rate: {name}", percent(fit.share)) for name, fit in rates.fits.items()),
        *((name.replace("_", " "), f"{value:g}") for name, value in rates.host.items()),
    ]  # fmt: skip
    blocks: list[Block] = [prose(note, kind="note") for note in plan.notes]
    blocks += [
        Facts("Rates that were reckoned with", tuple(limits)),
        Facts("Where they are from", tuple(items)),
    ]
    return Section("assumptions", "Assumptions", tuple(blocks))
