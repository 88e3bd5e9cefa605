"""The verdict in words, computed from the numbers alone.

A measure is said to fall only where its paired interval against the same family's base lies below 0; where it
does not, the sentence says so. Nothing is compared that the stored intervals do not compare.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from unidetox_ray.report.document import Block, Points, prose
from unidetox_ray.report.model import BASE, Cell, Metric, Run
from unidetox_ray.report.text import TIMES, listed, number, percent, plural

RULE = (
    "A measure counts as fallen only where the whole 95 % interval of its paired difference to the same "
    "family's base lies below 0."
)
TOXICITY = ("tp_id", "tp_ood", "emt_id", "emt_ood")


def blocks(run: Run) -> list[Block]:
    """The leading paragraph and one entry for each method other than base."""
    if not run.has_results:
        words = "No results yet: this run folder holds no results.json, so nothing is measured."
        return [prose(words, kind="lead")]
    failed = [cell for cell in run.cells if not cell.ok]
    treated = [method for method in run.methods if method != BASE]
    start = (
        f"{plural(len(run.families), 'family', 'families')} {TIMES} {plural(len(run.methods), 'method')}, "
    )
    start += f"{plural(len(run.cells), 'cell')}, "
    start += f"{len(failed)} failed and not counted below. " if failed else "none failed. "
    parts: list[str | tuple[str]] = [start]
    for method in treated:
        parts += [(method,), _headline(_compared(run, method))]
    if not treated:
        parts.append("Only the base models were measured, so there is nothing to compare.")
    points = [(method, _details(run, method)) for method in treated]
    if not points:
        return [prose(*parts, kind="lead")]
    return [prose(*parts, kind="lead"), Points(tuple(points)), prose(RULE, kind="note")]


def _compared(run: Run, method: str) -> list[Cell]:
    return [cell for cell in run.cells if cell.method == method and cell.ok]


def _unit(cells: list[Cell], amount: int) -> str:
    """Families, or cells where a family has several seeds or settings."""
    single = len({cell.family for cell in cells}) == len(cells)
    return ("family" if amount == 1 else "families") if single else ("cell" if amount == 1 else "cells")


def _headline(cells: list[Cell]) -> str:
    """` lowers all four toxicity measures in 3 of 4 families; …` with a full stop and a blank."""
    whole = [cell for cell in cells if all(cell.metric(name).diff_high is not None for name in TOXICITY)]
    if not whole:
        return " has no cell that can be compared with its base on all four toxicity measures. "
    every = sum(all(cell.metric(name).falls for name in TOXICITY) for cell in whole)
    some = sum(any(cell.metric(name).falls for name in TOXICITY) for cell in whole) - every
    up = sum(any(cell.metric(name).rises for name in TOXICITY) for cell in whole)
    unit = _unit(cells, len(whole))
    words = f" lowers all four toxicity measures in {every} of {len(whole)} {unit}"
    words += f" and some of them in {some} more" if some else ""
    words += f"; it raises at least one in {up}" if up else ""
    return words + ". "


def _details(run: Run, method: str) -> str:
    cells = _compared(run, method)
    if not cells:
        return "Every cell failed, so nothing can be said."
    return " ".join([*_toxicity(run, cells), _clean(run, cells), _quiz(cells)])


def _pairs(run: Run, cells: list[Cell], name: str) -> list[tuple[Metric, Metric]]:
    """(cell's metric, its base's metric) where both have a value and the difference has an interval."""
    found = []
    for cell in cells:
        base, mine = run.base_of(cell), cell.metric(name)
        theirs = base.metric(name).value if base else None
        if base and theirs is not None and mine.value is not None and mine.diff_high is not None:
            found.append((mine, base.metric(name)))
    return found


def _toxicity(run: Run, cells: list[Cell]) -> list[str]:
    """A sentence for each set of measures that moved in the same number of families."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in TOXICITY:
        pairs = _pairs(run, cells, name)
        if not pairs:
            groups.setdefault("cannot be compared with base", []).append((name, ""))
            continue
        falls, rises = sum(mine.falls for mine, _ in pairs), sum(mine.rises for mine, _ in pairs)
        unclear = len(pairs) - falls - rises
        words = f"fall in {falls} of {len(pairs)} {_unit(cells, len(pairs))}"
        words += f", rise in {rises}" if rises else ""
        words += f", unclear in {unclear} (the interval includes 0)" if unclear else ""
        relative = [mine.diff / base.value for mine, base in pairs if base.value and mine.diff is not None]
        shown = f"{name} {percent(median(relative), signed=True)}" if relative else ""
        groups.setdefault(words, []).append((name, shown))
    sentences = []
    for words, found in groups.items():
        verb = (
            words if len(found) > 1 else words.replace("fall in", "falls in").replace("rise in", "rises in")
        )
        changes = [shown for _, shown in found if shown]
        tail = f"; median relative change: {listed(changes)}" if changes else ""
        sentences.append(f"{listed([name for name, _ in found])} {verb}{tail}.")
    return sentences


def _spread(values: list[float], shown: Callable[[float], str]) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{shown(median(values))} (median; {low} to {high})"


def _moved(pairs: list[Metric]) -> str:
    """In how many the paired intervals exclude 0, in the two directions."""
    up, down = sum(metric.rises for metric in pairs), sum(metric.falls for metric in pairs)
    moved = [f"a rise in {up}"] if up else []
    moved += [f"a fall in {down}"] if down else []
    if not moved:
        return "no paired interval excludes 0"
    return f"the paired interval shows {listed(moved)} of {len(pairs)}"


def _clean(run: Run, cells: list[Cell]) -> str:
    ratios = []
    for cell in cells:
        base, mine = run.base_of(cell), cell.metric("clean_ppl").value
        theirs = base.metric("clean_ppl").value if base else None
        if theirs and mine is not None:
            ratios.append(mine / theirs)
    if not ratios:
        return "Clean-text perplexity: no comparison with base."
    pairs = [mine for mine, _ in _pairs(run, cells, "clean_ppl")]
    backing = _moved(pairs) if pairs else "no paired interval stored"
    return f"Clean-text perplexity as a multiple of base: {_spread(ratios, number)}; {backing}."


def _quiz(cells: list[Cell]) -> str:
    found = [cell.metric("mmlu") for cell in cells]
    changes = [100 * metric.diff for metric in found if metric.diff is not None]
    if not changes:
        return "Quiz accuracy: no comparison with base."
    pairs = [metric for metric in found if metric.diff_low is not None and metric.diff_high is not None]
    backing = _moved(pairs) if pairs else "no paired interval stored"
    shown = _spread(changes, lambda value: number(value, signed=True))
    return f"Quiz accuracy changes by {shown} points; {backing}."
