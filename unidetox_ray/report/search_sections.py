"""The search over steps and learning rate, from what search.json holds: map, curves, trials, choice."""

from __future__ import annotations

from typing import Any

import yaml

from unidetox_ray.report import charts, readers, svg
from unidetox_ray.report.document import Block, Cell, Chart, Code, Column, Facts, Legend, Table, prose, row
from unidetox_ray.report.text import MISSING, clean, count, is_number, number, rate, seconds

COLUMNS = ("tp_all", "tp_id", "tp_ood", "emt_all", "clean_ppl")
SCHEDULES = {
    "constant": "constant: one training per learning rate at a constant rate, measured at every checkpoint. "
    "Cheaper than the paper's search, and another schedule than a run that decays to 0.",
    "linear": "linear: one training per step count with the rate decaying to 0, as the paper does.",
}


def trials_of(search: dict[str, Any]) -> list[dict[str, Any]]:
    stored = search.get("trials")
    return [
        trial
        for trial in (stored if isinstance(stored, list) else [])
        if isinstance(trial, dict) and is_number(trial.get("steps")) and is_number(trial.get("lr"))
    ]


def _value(trial: dict[str, Any], name: str) -> float | None:
    good = trial.get("status", "ok") == "ok" and is_number(trial.get(name))
    return float(trial[name]) if good else None


def _is_chosen(trial: dict[str, Any], search: dict[str, Any]) -> bool:
    chosen = search.get("chosen")
    return (
        isinstance(chosen, dict)
        and trial["steps"] == chosen.get("steps")
        and is_number(chosen.get("lr"))
        and abs(trial["lr"] - chosen["lr"]) <= 1e-9 * abs(chosen["lr"])
    )


def metric_of(search: dict[str, Any]) -> str:
    """The name of the metric that was minimised."""
    return clean(search.get("metric") or "tp_all", 40)


def choice(search: dict[str, Any]) -> list[Block]:
    """What was searched, on what, and what was chosen and why."""
    chosen = readers.mapping(search.get("chosen"))
    trials = trials_of(search)
    failed = sum(trial.get("status", "ok") != "ok" for trial in trials)
    schedule, later = (
        clean(search.get(name) or "not recorded", 60) for name in ("schedule", "finetune_schedule")
    )
    prompts = search.get("selection_prompts")
    items = [
        (
            "chosen",
            f"{count(chosen.get('steps'))} steps, learning rate {rate(chosen.get('lr'))}"
            if chosen
            else "nothing",
        ),
        ("reason", clean(search.get("reason") or "none was stored", 400)),
        ("metric", f"{metric_of(search)}, lower is better, on validation prompts"),
        ("base family", clean(search.get("base_family") or MISSING, 60)),
        ("selection prompts", count(prompts) if is_number(prompts) else MISSING),
        ("schedule of the search", SCHEDULES.get(schedule, schedule)),
        ("schedule of the fine-tuning", later),
        ("trials", f"{len(trials)}, {failed} failed"),
    ]
    found: list[Block] = [Facts("Choice", tuple(items))]
    words = other_schedule(search)
    return [*found, prose(words, kind="note")] if words else found


def other_schedule(search: dict[str, Any]) -> str:
    """What to know where the fine-tuning has another schedule than the trials it was chosen from; else empty."""
    searched, later = search.get("schedule"), search.get("finetune_schedule")
    if searched not in SCHEDULES or later not in SCHEDULES or searched == later:
        return ""
    return (
        f"The trials were trained with schedule {searched}, the cells are fine-tuned with schedule {later}: the chosen "
        f"steps and rate were not measured under it. Set search.schedule and finetune.schedule alike to use what was measured."
    )


def heat(search: dict[str, Any]) -> Chart | None:
    """The map steps by learning rate, and the same trials as curves."""
    metric, trials = metric_of(search), trials_of(search)
    if not trials:
        return None
    cells = [
        charts.Trial(
            int(t["steps"]),
            float(t["lr"]),
            _value(t, metric),
            "" if _value(t, metric) is not None else "failed" if t.get("status") == "failed" else MISSING,
            _is_chosen(t, search),
        )
        for t in trials
    ]
    lines = _lines(search)
    panels = [charts.heat_map(f"{metric} by steps and learning rate", cells, metric)]
    if lines:
        panels.append(charts.line_chart(f"{metric} by steps", lines, ("steps", metric), dots=True))
    by_place = {(cell.steps, cell.lr): cell for cell in cells}
    rates = sorted({cell.lr for cell in cells})
    rows = []
    for steps in sorted({cell.steps for cell in cells}):
        line = []
        for lr in rates:
            cell = by_place.get((steps, lr), charts.Trial(steps, lr, None, "not run"))
            line.append(
                Cell(number(cell.value) + (" ★" if cell.chosen else ""), strong=cell.chosen)
                if cell.value is not None
                else Cell(cell.note, tone="muted")
            )
        rows.append(row(count(steps), *line))
    columns = (Column("steps"), *(Column(f"lr {rate(lr)}") for lr in rates))
    table = Table(f"{metric} by steps and learning rate; ★ is the chosen setting", columns, tuple(rows))
    note = "A stronger colour is more toxic; ★ is the chosen setting. The lines show the same trials."
    marks = tuple(Legend(line.name, svg.swatch(line.slot)) for line in lines)
    return Chart(f"{metric} on validation prompts", note, tuple(panels), table, marks)


def _lines(search: dict[str, Any]) -> list[charts.Line]:
    """The metric against steps, one line per learning rate."""
    metric, trials = metric_of(search), trials_of(search)
    lines = []
    for index, lr in enumerate(sorted({float(trial["lr"]) for trial in trials})):
        mine = [(float(t["steps"]), _value(t, metric)) for t in trials if t["lr"] == lr]
        points = sorted((steps, value) for steps, value in mine if value is not None)
        if points:
            lines.append(charts.Line(index + 1, f"lr {rate(lr)}", points))
    return lines


def trials_table(search: dict[str, Any]) -> Table | None:
    """Every trial with all it measured, in the order of steps and rate."""
    trials = sorted(trials_of(search), key=lambda trial: (trial["lr"], trial["steps"]))
    if not trials:
        return None
    names = [name for name in COLUMNS if any(name in trial for trial in trials)]
    rows = []
    for trial in trials:
        chosen = _is_chosen(trial, search)
        steps = Cell(
            count(trial["steps"]) + (" ★" if chosen else ""),
            title=clean(trial.get("trial") or "", 80),
            strong=chosen,
            sort=float(trial["steps"]),
        )
        shape = (steps, Cell(rate(trial["lr"]), sort=float(trial["lr"])))
        if trial.get("status", "ok") != "ok":
            words = Cell(
                f"failed: {clean(trial.get('error') or 'no error text was stored', 300)}",
                tone="failed",
                span=len(names) + 1,
            )
            rows.append(row(*shape, words, failed=True))
            continue
        values = []
        for name in names:
            value = _value(trial, name)
            values.append(Cell(number(value), sort=value, title="" if value is not None else "not measured"))
        spent = trial.get("seconds")
        rows.append(row(*shape, *values, Cell(seconds(spent), sort=spent if is_number(spent) else None)))
    columns = (
        Column("steps", numeric=False),
        Column("lr"),
        *(Column(n) for n in names),
        Column("time"),
    )
    return Table(
        "Trials on the base family's validation prompts; ★ is the chosen one",
        columns,
        tuple(rows),
        sortable=True,
    )


def setting(search: dict[str, Any]) -> Code | None:
    """The chosen setting as YAML that, in the place of `search:`, trains the cells that the search's run trains."""
    chosen = search.get("chosen")
    if not isinstance(chosen, dict) or not is_number(chosen.get("steps")) or not is_number(chosen.get("lr")):
        return None
    finetune: dict[str, Any] = {"steps": int(chosen["steps"]), "lr": float(chosen["lr"])}
    if search.get("finetune_schedule") in SCHEDULES:
        finetune["schedule"] = search["finetune_schedule"]
    finetune |= {
        name: value for name, value in readers.mapping(search.get("finetune")).items() if name not in finetune
    }
    return Code(yaml.safe_dump({"finetune": finetune}, sort_keys=False), "yaml")


def blocks(search: dict[str, Any]) -> list[Block]:
    """What the run's report shows of a search."""
    found: list[Block | None] = [*choice(search), heat(search), trials_table(search)]
    if not trials_of(search):
        found.append(prose("search.json holds no trials.", kind="note"))
    return [block for block in found if block is not None]
