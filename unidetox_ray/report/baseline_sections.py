"""A run beside a baseline: the section of the report, and the table of the console."""

from __future__ import annotations

from unidetox_ray.report.baseline import Comparison, Costs, Line, StageCost
from unidetox_ray.report.document import Block, Cell, Column, Facts, Section, Table, prose, row
from unidetox_ray.report.text import MISSING, clean, count, number, percent, seconds


def section(comparison: Comparison) -> Section:
    """Speed-up, efficiency and cost, stage by stage."""
    base, run = comparison.base, comparison.run
    blocks: list[Block] = [prose((sentence(comparison),), kind="lead")]
    blocks += [prose(f"{remark[:1].upper()}{remark[1:]}.", kind="warning") for remark in comparison.remarks]
    blocks.append(_table(comparison))
    blocks.append(
        Facts(
            "The two",
            (
                ("baseline", _about(base)), ("this run", _about(run)),
                ("efficiency", "speed-up over the number of devices that this run has more"),
                ("device-hours", "devices that a stage held, times its wall clock"),
                ("cost", "all devices of the cluster for the time, whether they work or not"),
            ),
        )
    )  # fmt: skip
    return Section("baseline", "Against the baseline", tuple(blocks))


def sentence(comparison: Comparison) -> str:
    """The result in a line."""
    total = comparison.total
    if total.speedup is None:
        return "No stage has a time on both sides, so that no speed-up can be told; the remarks say why."
    said = f"{number(total.speedup)} times as fast as {clean(comparison.base.name, 60)} on {_devices(comparison.base)}"
    if total.efficiency is not None:
        said += f", efficiency {percent(total.efficiency)}"
    if total.base_cost is not None and total.run_cost is not None:
        said += f"; cost {number(total.base_cost)} there, {number(total.run_cost)} here"
    return f"{said}."


def console(comparison: Comparison) -> str:
    """As text for a terminal."""
    priced = comparison.price is not None
    head = [
        "stage",
        "baseline",
        "this run",
        "speed-up",
        "efficiency",
        "device-hours",
        "",
        *(["cost", ""] if priced else []),
    ]
    rows = [head]
    for line in [*comparison.lines, comparison.total]:
        rows.append(
            [
                line.stage, _time(line.base), _time(line.run), number(line.speedup), percent(line.efficiency), _hours(line.base), _hours(line.run),
                *([number(line.base_cost), number(line.run_cost)] if priced else []),
            ]
        )  # fmt: skip
    widths = [max(len(each[at]) for each in rows) for at in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(each, widths, strict=True))
        ).rstrip()
        for each in rows
    ]
    return "\n".join([*lines, sentence(comparison), *(f"note: {remark}" for remark in comparison.remarks)])


def _table(comparison: Comparison) -> Table:
    priced = comparison.price is not None
    rows = []
    for line in [*comparison.lines, comparison.total]:
        cells: list[Cell | str] = [
            line.stage, Cell(_time(line.base), sort=line.base.seconds if line.base else None), Cell(_time(line.run), sort=line.run.seconds if line.run else None),
            Cell(number(line.speedup), title=_why(line), sort=line.speedup, strong=line is comparison.total), Cell(percent(line.efficiency), sort=line.efficiency),
            _hours(line.base), _hours(line.run), _tokens(line.base), _tokens(line.run),
        ]  # fmt: skip
        if priced:
            cells += [number(line.base_cost), number(line.run_cost)]
        rows.append(row(*cells, first=line is comparison.total))
    names = [
        "baseline",
        "this run",
        "speed-up",
        "efficiency",
        "device-hours of the baseline",
        "of this run",
        "tokens of the baseline",
        "of this run",
    ]
    if priced:
        names += [f"cost at {number(comparison.base_price)} an hour", f"at {number(comparison.price)}"]
    return Table(
        "Stage by stage", (Column("stage", numeric=False), *(Column(name) for name in names)), tuple(rows)
    )


def _why(line: Line) -> str:
    if line.speedup is not None:
        return ""
    if line.base is None or line.run is None:
        return "only one of the two has this stage"
    if line.base.partial or line.run.partial:
        return "one of the two found part of the work finished"
    return "no time is known on one of the sides"


def _time(stage: StageCost | None) -> str:
    if stage is None or stage.seconds is None:
        return MISSING
    return seconds(stage.seconds) + (" (part)" if stage.partial else "")


def _hours(stage: StageCost | None) -> str:
    return MISSING if stage is None or stage.device_seconds is None else number(stage.device_seconds / 3600)


def _tokens(stage: StageCost | None) -> str:
    return MISSING if stage is None or not stage.tokens else count(stage.tokens)


def _devices(costs: Costs) -> str:
    kind = costs.accelerator or ("GPU" if costs.device == "gpu" else "CPU")
    return f"{costs.devices:g} x {clean(kind, 60)}" if costs.devices else clean(kind, 60)


def _about(costs: Costs) -> str:
    parts = [clean(costs.name, 80), f"key {costs.key[:12]}", _devices(costs)]
    parts += [f"limit {costs.limit}"] if costs.limit is not None else []
    parts += [f"finished {costs.created[:19].replace('T', ' ')}"] if costs.created else []
    return ", ".join(parts)
