"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from unidetox_ray.plan.engine import Ran
from unidetox_ray.plan.result import BASELINE, GIB, CellPlan, Plan
from unidetox_ray.plan.scaling import Scaling
from unidetox_ray.report.text import MISSING, amount, number, percent, seconds

#: Columns of the Gantt chart's time.
_WIDE = 56
#: Cells of one stage that are listed one by one; more are drawn together by family.
_MOST_CELLS = 12


def text(plan: Plan, scaling: Scaling | None = None) -> str:
    """The whole plan, lines of at most about 120 characters."""
    device = "GPU" if plan.fleet.gpu else "core"
    parts = [
        f"plan of {plan.experiment.name} on {plan.fleet.name} ({plan.fleet.rates.title}), "
        f"{plan.fleet.memory / GIB:.1f} GiB {'each' if plan.fleet.gpu else 'in all'}; computed, not measured",
        "models: " + ", ".join(f"{name} {amount(count)}" for name, count in plan.models.items()),
        _table(
            ["stage", "starts", "takes", "lanes", f"{device}-hours", "tokens", "FLOP", "held up by"],
            [
                [
                    s.stage, seconds(s.start), seconds(s.seconds), str(s.lanes), number(s.device_seconds / 3600), amount(s.tokens),
                    f"{s.operations:.2e}" if s.operations else MISSING, s.bottleneck,
                ]
                for s in plan.stages
            ],
        ),
        gantt(plan),
        _table(
            ["cell", f"{device}s", "peak GiB", "weights", "grads", "optim.", "activ.", "cache", "disk GiB", "takes", "fits"],
            [_cell(each) for each in _grouped(plan.cells)],
        ),
        _totals(plan, device),
    ]  # fmt: skip
    if scaling is not None:
        parts.append(scaling_table(scaling))
    if plan.notes:
        parts.append("\n".join(f"note: {note}" for note in plan.notes))
    return "\n\n".join(part for part in parts if part)


def scaling_table(scaling: Scaling) -> str:
    lines = [
        [
            str(s.devices), str(s.workers), seconds(s.seconds), number(s.speedup), percent(s.efficiency),
            f"{s.stage}: {s.bottleneck}",
        ]
        for s in scaling.sizes
    ]  # fmt: skip
    head = ["devices", "workers a cell", "takes", "speed-up", "efficiency", "held up by"]
    return f"{_table(head, lines)}\n{scaling.sentence}"


def gantt(plan: Plan) -> str:
    """A line per stage and lane: which family is worked on when. At most eight lanes of a stage are drawn."""
    whole = max(plan.seconds, 1e-9)
    lines = []
    width = max(
        (
            len(_lane_name(ran, lane))
            for ran in plan.schedule.ran
            for lane in range(max(1, min(ran.lanes, 8)))
        ),
        default=0,
    )
    letters = _letters(plan)
    for ran in plan.schedule.ran:
        for lane in range(max(1, min(ran.lanes, 8))):
            row = ["·"] * _WIDE
            first, last = int(ran.start / whole * _WIDE), min(_WIDE - 1, int(ran.end / whole * _WIDE))
            for place in range(first, last + 1):
                row[place] = "-"
            for bar in (bar for bar in ran.bars if bar.lane == lane):
                sign = letters.get(bar.cell.family, "x")
                begin = min(_WIDE - 1, int(bar.start / whole * _WIDE))
                end = min(_WIDE - 1, max(begin, int(bar.end / whole * _WIDE - 1e-9)))
                row[begin : end + 1] = [sign] * (end - begin + 1)
            lines.append(f"{_lane_name(ran, lane):<{width}} |{''.join(row)}|")
        if ran.lanes > 8:
            lines.append(f"{'':<{width}}  and {ran.lanes - 8} further lanes")
    key = ", ".join(f"{letter} {family}" for family, letter in letters.items())
    return "\n".join(
        [*lines, f"{'':<{width}}  0 to {seconds(plan.seconds)}; {key}, x all or none, - start-up or waiting"]
    )


def _lane_name(ran: Ran, lane: int) -> str:
    return ran.stage.name if ran.lanes < 2 else f"{ran.stage.name} {lane}"


def _letters(plan: Plan) -> dict[str, str]:
    """A capital letter for each family, its own where it is free."""
    found: dict[str, str] = {}
    for family in dict.fromkeys(cell.cell.family for cell in plan.cells if cell.cell.family):
        letters = [letter for letter in family.upper() + "ABCDEFGHIJKLMNOPQRSTUVWYZ" if letter.isalpha()]
        found[family] = next(letter for letter in letters if letter not in found.values())
    return found


def _grouped(cells: Sequence[CellPlan]) -> list[tuple[str, list[CellPlan]]]:
    """Cells one by one, or those of a stage with many of them by family; what does not fit stands alone."""
    lines: list[tuple[str, list[CellPlan]]] = []
    for stage in dict.fromkeys(cell.cell.stage for cell in cells):
        mine = [cell for cell in cells if cell.cell.stage == stage]
        alone = [cell for cell in mine if not cell.fits] if len(mine) > _MOST_CELLS else mine
        rest = [cell for cell in mine if cell not in alone]
        lines += [
            (f"{stage} {cell.cell.name}" if cell.cell.name != stage else stage, [cell]) for cell in alone
        ]
        for family in dict.fromkeys(cell.cell.family for cell in rest):
            same = [cell for cell in rest if cell.cell.family == family]
            lines.append((f"{stage} {family or 'all'} ({len(same)} cells)", same))
    return lines


def _cell(line: tuple[str, list[CellPlan]]) -> list[str]:
    name, cells = line
    worst = max(cells, key=lambda cell: cell.peak)
    parts = (
        worst.memory.weights,
        worst.memory.gradients,
        worst.memory.optimiser,
        worst.memory.activations + worst.memory.logits,
        worst.memory.cache,
    )
    return [
        name, f"{max(cell.devices for cell in cells):g}", number(worst.peak / GIB) if worst.peak else MISSING,
        *(number(part / GIB) if part else MISSING for part in parts), number(sum(cell.disk for cell in cells) / GIB),
        seconds(sum(cell.seconds for cell in cells)), "yes" if all(cell.fits for cell in cells) else "NO",
    ]  # fmt: skip


def _totals(plan: Plan, device: str) -> str:
    lines = [
        f"takes {seconds(plan.seconds)}; {device}s at work {number(plan.device_hours)} hours, held {number(plan.rented_hours)} hours"
        + (
            ""
            if plan.price is None
            else f" = {number(plan.price * plan.rented_hours)} at {plan.price:g} an hour"
        )
        + f"; leaves {number(plan.disk / GIB)} GiB"
    ]
    if plan.baseline is None:
        lines.append(f"baseline {BASELINE}: none: {plan.baseline_why}")
    else:
        said = f"baseline {BASELINE}: {seconds(plan.baseline)}, so speed-up {number(plan.speedup)}"
        lines.append(said + ("" if plan.efficiency is None else f", efficiency {percent(plan.efficiency)}"))
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first and the last to the left, the others to the right."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    last = len(head) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in (0, last) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    )
