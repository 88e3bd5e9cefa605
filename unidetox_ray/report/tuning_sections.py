"""What was tuned and what was chosen: the universal setting beside each family's own, curves along dials, all trials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unidetox_ray.report import readers, svg
from unidetox_ray.report.dial_chart import Stop, dial_chart
from unidetox_ray.report.document import (
    Block,
    Cell,
    Chart,
    Column,
    Legend,
    Points,
    Row,
    Section,
    Table,
    prose,
    row,
)
from unidetox_ray.report.model import Cell as Measured
from unidetox_ray.report.model import Metric, Run
from unidetox_ray.report.result_sections import metric_cell, slots
from unidetox_ray.report.text import (
    MISSING,
    clean,
    count,
    interval,
    is_number,
    number,
    plural,
    seconds,
)
from unidetox_ray.report.tuning_verdict import (
    course_words,
    entries_of,
    families_of,
    own_gap,
    own_pairs,
    setting_words,
    universality,
    value_words,
)

SHOWN = ("tp_all", "emt_all", "clean_ppl")
RULE = (
    "Universality fails for a method where a family's own setting is better than the universal one on test prompts, the "
    "whole 95 % interval of their paired difference on its side. A dial is monotone where no stronger setting goes the "
    "wrong way against any weaker one, interval and all, and the strongest differs from the base model in the right one."
)


def tuning(run: Run) -> Section | None:
    """The section, where anything was tuned."""
    entries = entries_of(run)
    if run.tuning is None or not entries:
        return None
    metric = _metric_name(run.tuning)
    blocks: list[Block] = [prose(_lead(run.tuning, entries)), Points(tuple((clean(label, 60), universality(run, label, entry, metric)) for label, entry in entries.items()))]  # fmt: skip
    if run.cells:
        blocks.append(_columns(run, entries, metric))
    for label, entry in entries.items():
        blocks += _dial(run, label, entry) or [_trials(run, label, entry)]
    blocks.append(prose(RULE, kind="note"))
    return Section("tuning", "Tuning", tuple(blocks))


def _metric_name(tuning: dict[str, Any]) -> str:
    return clean(tuning.get("metric") or "tp_all", 20)


def _lead(tuning: dict[str, Any], entries: dict[str, Any]) -> str:
    words = f"{plural(len(entries), 'method')} tuned on {count(tuning.get('selection_prompts'))} validation prompts, "
    words += f"{count(tuning.get('continuations'))} continuations each: lowest {_metric_name(tuning)} among the settings whose "
    words += f"clean_ppl is at most {number(tuning.get('max_clean_ppl'))} times the family's base model's. "
    base = clean(tuning.get("base_family") or "the base family", 40)
    reuse = tuning.get("reuse")
    if reuse != "per_model":
        words += f"Universal: the choice on {base}, used for every family. "
    if reuse != "universal":
        words += "Own: each family's own choice. "
    return words + "The first table shows test prompts; curves and trials show validation prompts."


def _columns(run: Run, entries: dict[str, Any], metric: str) -> Table:
    """Family by method: setting and test numbers of the universal choice, and of the family's own."""
    reuse = (run.tuning or {}).get("reuse")
    sides = [
        side for side, left_out in (("universal", "per_model"), ("own", "universal")) if reuse != left_out
    ]
    rows: list[Row] = []
    marks = slots(run)
    for label, entry in entries.items():
        first = True
        for family, part in families_of(run, entry):
            mine = [cell for cell in run.cells if (cell.family, cell.method) == (family, label)]
            for cell in mine:
                own = next((pair[0] for pair in own_pairs(run, family, label) if pair[1] is cell), None)
                head = Cell(
                    label, label=family, mark=svg.swatch(marks.get(label, 0)), title=f"seed {cell.seed}"
                )
                line: list[Cell | str] = [head]
                for side in sides:
                    chosen = (
                        readers.mapping(entry.get("universal")).get("chosen")
                        if side == "universal"
                        else part.get("chosen")
                    )
                    shown = own if side == "own" and own is not None else cell
                    line.append(setting_words(chosen))
                    line += _numbers(shown)
                if len(sides) == 2:
                    line.append(_gap_cell(run, cell, own, metric))
                rows.append(row(*line, first=first))
                first = False
    heads = [Column("family · method", numeric=False)]
    for side in sides:
        heads += [Column(f"{side}: setting", numeric=False), *(Column(name) for name in SHOWN)]
    if len(sides) == 2:
        heads.append(Column(f"own Δ {metric}", "own minus universal, paired by prompt"))
    caption = "Chosen settings on test prompts, with 95 % intervals"
    caption += "; where both columns have one setting it was run once" if len(sides) == 2 else ""
    return Table(caption, tuple(heads), tuple(rows), sortable=True)


def _numbers(cell: Measured) -> list[Cell]:
    if cell.ok:
        # What each gains over the base model is in the table of results; here the two settings are set side by side.
        plain = [replace(cell.metric(name), diff=None) for name in SHOWN]
        return [metric_cell(metric, "") for metric in plain]
    return [Cell(f"failed: {cell.error}", tone="failed", span=len(SHOWN))]


def _gap_cell(run: Run, universal: Measured, own: Measured | None, metric: str) -> Cell:
    if own is None:
        return Cell("same setting" if universal.ok else MISSING, tone="muted")
    gap = own_gap(run, (own, universal), metric)
    if gap is None:
        return Cell(MISSING, title="one of the two has no value", tone="muted")
    tone = "better" if gap.falls else "worse" if gap.rises else ""
    return Cell(number(gap.diff, signed=True), interval(gap.diff_low, gap.diff_high, signed=True), tone=tone, sort=gap.diff)  # fmt: skip


def _trial_metric(trial: dict[str, Any], name: str) -> Metric:
    if trial.get("status") != "ok":
        return Metric(reason=clean(trial.get("error") or "failed", 200))
    ends = [trial.get(f"{name}_{end}") for end in ("low", "high")]
    low, high = (float(end) if is_number(end) else None for end in ends)
    value = trial.get(name)
    return Metric(float(value), low, high) if is_number(value) else Metric(reason="not measured")


#: What a trial's row shows behind its setting; see `_told`.
_COLUMNS = (
    *(Column(name) for name in SHOWN),
    Column("÷ base", "clean_ppl as a multiple of the base model's"),
    Column("time"),
)


def _told(trial: dict[str, Any]) -> list[Cell]:
    ratio, spent = trial.get("ratio"), trial.get("seconds")
    return [
        *(metric_cell(_trial_metric(trial, name), "") for name in SHOWN),
        Cell(number(ratio), sort=ratio if is_number(ratio) else None),
        Cell(seconds(spent), sort=spent if is_number(spent) else None),
    ]


def _dial(run: Run, label: str, entry: dict[str, Any]) -> list[Block]:
    """The curves of one method: a panel per family and setting of what else was tuned, and what they say."""
    tuning = run.tuning or {}
    panels, rows, said = [], [], []
    slot = slots(run).get(label, 1)
    dial = ""
    for family, part in families_of(run, entry):
        by_name = {trial.get("trial"): trial for trial in part.get("trials") or []}
        base = readers.mapping(readers.mapping(tuning.get("bases")).get(family))
        for curve in part.get("curves") or []:
            dial = clean(curve.get("dial"), 40)
            at = curve.get("at") or {}
            title = f"{family}{f', {setting_words(at)}' if at else ''}"
            stops = []
            for point in curve.get("points") or []:
                trial = by_name.get(point.get("trial"), base)
                toxicity, perplexity = _trial_metric(trial, "tp_all"), _trial_metric(trial, "clean_ppl")
                chosen = trial is not base and trial.get("settings") == part.get("chosen")
                name = value_words(point.get("strength")) + (" (base)" if trial is base else "")
                stops.append(Stop(name, toxicity, perplexity, chosen))
                head = Cell(name + (" ★" if chosen else ""), strong=chosen)
                rows.append(row(title, head, *_told(trial), first=len(stops) == 1))
            names = (dial, "tp_all", "clean_ppl")
            panels.append(dial_chart(title, stops, slot, names))
            said.append((title, f"{course_words(curve.get('toxicity'), dial, 'tp_all', 'falls')} {course_words(curve.get('perplexity'), dial, 'clean_ppl', 'rises')}"))  # fmt: skip
    if not panels:
        return []
    columns = (Column("family", numeric=False), Column(dial), *_COLUMNS)
    table = Table(f"{label}: toxicity and clean perplexity along {dial}, validation prompts; ★ is the family's own choice", columns, tuple(rows))  # fmt: skip
    note = "Validation prompts; lines are 95 % intervals by prompt (clean_ppl: by text). ★ is the family's own choice."
    return [
        Chart(f"{label}: the dial {dial}", note, tuple(panels), table, (Legend(label, svg.swatch(slot)),)),
        Points(tuple(said)),
    ]


def _trials(run: Run, label: str, entry: dict[str, Any]) -> Table:
    """Every trial of one method, those of base models first."""
    tuning = run.tuning or {}
    rows: list[Row] = []
    for family, part in families_of(run, entry):
        base = readers.mapping(readers.mapping(tuning.get("bases")).get(family))
        for index, trial in enumerate([base, *(part.get("trials") or [])]):
            chosen = index > 0 and trial.get("settings") == part.get("chosen")
            words = "base model" if index == 0 else setting_words(trial.get("settings"))
            head = (Cell(family), Cell(words + (" ★" if chosen else ""), strong=chosen))
            if trial.get("status") != "ok":
                told = f"failed: {clean(trial.get('error') or 'no error text was stored', 300)}"
                rows.append(
                    row(*head, Cell(told, tone="failed", span=len(_COLUMNS)), first=index == 0, failed=True)
                )
                continue
            rows.append(row(*head, *_told(trial), first=index == 0))
    columns = (Column("family", numeric=False), Column("setting", numeric=False), *_COLUMNS)
    caption = f"Trials of {label} on validation prompts; ★ is the family's own choice"
    if entry.get("schedule") == "constant" and tuning.get("finetune_schedule") != "constant":
        caption += f". Trained at a constant rate, the cells with schedule {clean(tuning.get('finetune_schedule'), 20)}"
    return Table(caption, columns, tuple(rows), sortable=True)
