"""What a tuning says in words: whether one setting serves all families, and how a curve along a dial runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unidetox_ray.report import readers
from unidetox_ray.report.model import Cell as Measured
from unidetox_ray.report.model import Metric, Run
from unidetox_ray.report.text import MISSING, clean, interval, is_number, listed, number, rate

#: Behind the label of cells with their own family's setting, where it differs from the universal one.
OWN = "@own"


def setting_words(point: Any) -> str:
    """A chosen setting as people write it."""
    if not isinstance(point, dict):
        return MISSING
    return (
        ", ".join(f"{clean(name, 40)} {value_words(value)}" for name, value in point.items())
        or "as in the file"
    )


def value_words(value: Any) -> str:
    return rate(value) if is_number(value) else clean(value, 40)


def entries_of(run: Run) -> dict[str, dict[str, Any]]:
    """What was tuned by label, in the order of the run's methods (the file has them by name)."""
    stored = readers.mapping((run.tuning or {}).get("entries"))
    return {
        label: readers.mapping(stored[label])
        for label in sorted(stored, key=_place(run.config.get("methods")))
    }


def families_of(run: Run, entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The part of each family, in the order of the run's families."""
    stored = readers.mapping(entry.get("families"))
    order = sorted(stored, key=_place(run.config.get("families")))
    return [(clean(family, 60), readers.mapping(stored[family])) for family in order]


def _place(names: Any) -> Callable[[str], tuple[int, str]]:
    """A sorting key: the place among the configuration's names, or labels; what is not there comes last."""
    known = [one.get("label", one.get("method")) if isinstance(one, dict) else one for one in names or []]
    return lambda name: (known.index(name) if name in known else len(known), name)


def universality(run: Run, label: str, entry: dict[str, Any], metric: str) -> str:
    """Whether the universal setting is as good as each family's own, in a sentence or two."""
    tuning = run.tuning or {}
    if tuning.get("reuse") == "per_model":
        chosen = [
            f"{family}: {setting_words(part.get('chosen'))}" for family, part in families_of(run, entry)
        ]
        return f"Every family has its own setting ({'; '.join(chosen)}); no universal one was tried."
    universal = readers.mapping(entry.get("universal"))
    if universal.get("chosen") is None:
        return f"No universal setting: {clean(universal.get('reason') or 'no reason was stored', 300)}."
    start = f"Universal setting: {setting_words(universal['chosen'])}. "
    if tuning.get("reuse") == "universal":
        return (
            start + "Other families were not searched, so whether they would choose otherwise is not known."
        )
    others = [
        (family, part) for family, part in families_of(run, entry) if family != tuning.get("base_family")
    ]
    if not others:
        return start + "There is no other family to try it on."
    same = [family for family, part in others if part.get("chosen") == universal["chosen"]]
    failed = [family for family, part in others if part.get("chosen") is None]
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    unknown: list[str] = []
    for family, part in others:
        if family in same or family in failed:
            continue
        who = f"{family} ({setting_words(part.get('chosen'))}"
        gaps = [gap for gap in (own_gap(run, pair, metric) for pair in own_pairs(run, family, label)) if gap]
        if not gaps:
            unknown.append(who + ")")
        for gap in gaps:
            told = f"{who}: Δ {metric} {number(gap.diff, signed=True)} {interval(gap.diff_low, gap.diff_high, signed=True)})"
            (better if gap.falls else worse if gap.rises else unclear).append(told)
    parts = [f"the family's own setting is better on test prompts in {listed(better)}"] if better else []
    parts += [f"the own setting is not better beyond the interval in {listed(unclear)}"] if unclear else []
    parts += [f"the own setting is worse in {listed(worse)}"] if worse else []
    parts += [f"{listed(same)} {'chooses' if len(same) == 1 else 'choose'} the same setting"] if same else []
    parts += [f"not compared on test prompts in {listed(unknown)}"] if unknown else []
    parts += [f"no trial succeeded in {listed(failed)}"] if failed else []
    if better:
        ruling = "Universality fails"
    elif unknown or failed:
        ruling = "Universality is not settled"
    else:
        ruling = "Universality holds"
    return f"{start}{ruling}: {'; '.join(parts)}."


def own_pairs(run: Run, family: str, label: str) -> list[tuple[Measured, Measured]]:
    """(own, universal) cells of a family, by seed."""
    universal = {cell.seed: cell for cell in run.cells if (cell.family, cell.method) == (family, label)}
    own = [cell for cell in run.cells if (cell.family, cell.method) == (family, label + OWN)]
    return [(cell, universal[cell.seed]) for cell in own if cell.seed in universal]


def own_gap(run: Run, pair: tuple[Measured, Measured], name: str) -> Metric | None:
    """own - universal on test prompts, paired."""
    for stored in run.tuning_test:
        if (stored.get("own"), stored.get("universal")) == (pair[0].cell, pair[1].cell):
            found = readers.mapping(readers.mapping(stored.get("metrics")).get(name))
            if is_number(found.get("diff")):
                ends = [
                    found[end] if is_number(found.get(end)) else None for end in ("diff_low", "diff_high")
                ]
                return Metric(diff=found["diff"], diff_low=ends[0], diff_high=ends[1])
    return None


def course_words(found: Any, dial: str, name: str, way: str) -> str:
    """What a curve's verdict says: monotone within the intervals, or the pair that speaks against it."""
    if not isinstance(found, dict):
        return f"{name}: too few strengths were measured to say."
    change, against = readers.mapping(found.get("change")), found.get("against")
    whole = f"{number(change.get('value'), signed=True)} {interval(change.get('low'), change.get('high'), signed=True)} from end to end"
    if found.get("holds"):
        return f"{name} {way} monotonically within the intervals ({whole})."
    if isinstance(against, dict):
        turn = "more" if way == "falls" else "less"
        gap = f"{number(against.get('value'), signed=True)} {interval(against.get('low'), against.get('high'), signed=True)}"
        return f"{name} is not monotone: {turn} at {dial} {value_words(against.get('stronger'))} than at {value_words(against.get('weaker'))}, {gap} ({whole})."
    return f"{name} does not clearly {'fall' if way == 'falls' else 'rise'} ({whole})."
