"""The leaderboard as values: one entry per cell, one standing per method, and who is on which Pareto front.

Values, intervals and paired differences are those of results.json; what is new here is arithmetic on them. Means are over
families, seeds of a family averaged first; ratios and speeds are averaged geometrically. A mean over families has no
interval: the families answer the same prompts, so theirs cannot be put together without the resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, geometric_mean
from typing import Any

from unidetox_ray.leaderboard.front import pareto_front

BASE = "base"
#: Behind the label of cells with their own family's setting; a family whose choice is the universal one has no such cell.
OWN = "@own"
#: What the ranking is by; lower is better.
TOXICITY = "tp_all"
MEASURES = (TOXICITY, "emt_all", "ppl", "dist2", "mmlu", "clean_ppl")
#: clean_ppl over that of the family's base: the one form of it that families share.
RATIO = "clean_ratio"
#: What toxicity is paid for with, and what the fronts are drawn against; lower is better.
AXES = (RATIO, "ppl")
COSTS = (
    "decode_tokens_per_second", "decode_relative_cost", "trainable_parameters", "extra_memory_gib",
    "train_seconds", "fit_seconds", "edit_seconds",
)  # fmt: skip
#: Shown where a run has it.
OPTIONAL = ("refusal_rate",)
_GEOMETRIC = {RATIO, "decode_relative_cost"}
#: Not comparable between families, so not averaged: vocabularies and speeds differ.
_NOT_AVERAGED = {"clean_ppl", "decode_tokens_per_second"}


@dataclass(frozen=True)
class Entry:
    """A cell. `metrics`: its numbers as results.json has them (value, ci_low, … diff_high), by measure."""

    cell: str
    family: str
    method: str
    seed: int | None
    kind: str
    tuned: str
    ok: bool
    error: str
    metrics: dict[str, dict[str, Any]]
    costs: dict[str, float]
    ratio: float | None
    fronts: dict[str, bool | None] = field(default_factory=dict)
    """By axis: on the front of its family; None = it has no point there."""

    def value(self, name: str) -> float | None:
        """A measure, the ratio or a cost; None where it is withheld or was not measured."""
        if name == RATIO:
            return self.ratio
        if name in self.metrics:
            return _number(self.metrics[name].get("value"))
        return self.costs.get(name)

    @property
    def lowers(self) -> bool | None:
        """Toxicity: whether the whole paired interval lies below 0; None without an interval."""
        high = _number(self.metrics.get(TOXICITY, {}).get("diff_high"))
        return None if high is None else high < 0

    @property
    def raises(self) -> bool | None:
        low = _number(self.metrics.get(TOXICITY, {}).get("diff_low"))
        return None if low is None else low > 0


@dataclass(frozen=True)
class Standing:
    """A method over all families. `counts`: families that each mean is over, of `families` in the run.

    `shared`: families in which an own choice is the universal one, whose cells then count for both."""

    method: str
    kind: str
    tuned: str
    families: int
    means: dict[str, float | None]
    counts: dict[str, int]
    compared: int
    """Families with a paired difference in toxicity; `lowers` and `raises` are of these (in every seed)."""
    lowers: int
    raises: int
    shared: tuple[str, ...] = ()
    rank: int | None = None
    """By mean toxicity, 1 = lowest, equal means share one; None where a family lacks it."""
    fronts: dict[str, bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    entries: tuple[Entry, ...]
    """In the order of the rows."""
    standings: tuple[Standing, ...]
    """By rank, then those without one in the order of the rows."""
    measures: tuple[str, ...]
    """MEASURES that any cell has, then toxicity by further scorers, then OPTIONAL."""
    costs: tuple[str, ...]
    left_out: dict[str, tuple[str, ...]]
    """By axis: ids of cells that are on no front for want of a number, failed ones among them."""

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(entry.family for entry in self.entries))

    @property
    def is_wide(self) -> bool:
        """Whether methods of more than one kind are compared, base apart, or more than four entries."""
        kinds = {s.kind for s in self.standings if s.method != BASE and s.kind} - {"unchanged"}
        return len(kinds) > 1 or len(self.standings) > 4


def board_of(rows: Sequence[Mapping[str, Any]]) -> Board:
    """The leaderboard of results.json's rows; pure, and tolerant of rows of failed cells and missing costs."""
    entries = _with_fronts(_entries(rows))
    present = {name for entry in entries for name in entry.metrics}
    further = [name for name in present if name.startswith(f"{TOXICITY}@")]
    measures = [name for name in MEASURES if name in present] + sorted(further)
    measures += [name for name in OPTIONAL if name in present]
    known = {name for entry in entries for name in entry.costs}
    costs = [name for name in COSTS if name in known]
    names = [*measures, RATIO, *costs]
    methods = dict.fromkeys(entry.method for entry in entries)
    families = len({entry.family for entry in entries})
    standings = [
        _standing(
            method, [entry for entry in entries if _counts_for(entry, method, entries)], families, names
        )
        for method in methods
    ]
    return Board(
        entries=tuple(entries),
        standings=tuple(_ranked(standings, families)),
        measures=tuple(measures),
        costs=tuple(costs),
        left_out={
            axis: tuple(entry.cell for entry in entries if entry.fronts[axis] is None) for axis in AXES
        },
    )


def _entries(rows: Sequence[Mapping[str, Any]]) -> list[Entry]:
    found = []
    for row in rows:
        settings, costs = row.get("settings") or {}, row.get("costs") or {}
        found.append(
            Entry(
                cell=str(row["cell"]), family=str(row["family"]), method=str(row["method"]), seed=row.get("seed"),
                kind=str(settings.get("kind") or ""), tuned=str(settings.get("tuned") or ""),
                ok=row.get("status") == "ok", error=str(row.get("error") or ""),
                metrics=dict(row.get("metrics") or {}), ratio=_ratio(row, rows),
                costs={name: value for name in COSTS if (value := _number(costs.get(name))) is not None},
            )
        )  # fmt: skip
    return found


def _ratio(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    base = _reference(row, rows)
    values = [
        _number((((each or {}).get("metrics") or {}).get("clean_ppl") or {}).get("value"))
        for each in (row, base)
    ]
    own, theirs = values
    return None if own is None or not theirs else own / theirs


def _reference(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The base cell of the family, of the same seed if there are several, as in `results`."""
    bases = [
        other
        for other in rows
        if other["family"] == row["family"] and other["method"] == BASE and other.get("status") == "ok"
    ]
    same = [other for other in bases if other.get("seed") == row.get("seed")]
    chosen = same or (bases if len(bases) == 1 else [])
    return chosen[0] if chosen else None


def _with_fronts(entries: list[Entry]) -> list[Entry]:
    fronts: dict[str, dict[str, bool | None]] = {entry.cell: {} for entry in entries}
    for family in dict.fromkeys(entry.family for entry in entries):
        mine = [entry for entry in entries if entry.family == family]
        for axis in AXES:
            points = [
                (entry.value(TOXICITY), entry.value(axis)) if entry.ok else (None, None) for entry in mine
            ]
            for entry, on in zip(mine, pareto_front(points), strict=True):
                fronts[entry.cell][axis] = on
    return [replace(entry, fronts=fronts[entry.cell]) for entry in entries]


def _counts_for(entry: Entry, method: str, entries: Sequence[Entry]) -> bool:
    """Whether a cell is one of the method's, its own or one that it shares."""
    if entry.method == method:
        return True
    if not method.endswith(OWN) or entry.method != method.removesuffix(OWN):
        return False
    return not any(other.method == method and other.family == entry.family for other in entries)


def _standing(method: str, mine: list[Entry], families: int, names: Iterable[str]) -> Standing:
    """The standing of one method, without rank and fronts."""
    by_family: dict[str, list[Entry]] = {}
    for entry in mine:
        by_family.setdefault(entry.family, []).append(entry)
    means: dict[str, float | None] = {}
    counts: dict[str, int] = {}
    for name in names:
        if name in _NOT_AVERAGED:
            continue
        mean = geometric_mean if name in _GEOMETRIC else fmean
        seeds = [[entry.value(name) for entry in cells if entry.ok] for cells in by_family.values()]
        known = [[value for value in values if value is not None] for values in seeds]
        values = [mean(each) for each in known if each]
        means[name], counts[name] = (mean(values) if values else None), len(values)
    verdicts = [
        [(entry.lowers, entry.raises) for entry in cells if entry.ok and entry.lowers is not None]
        for cells in by_family.values()
    ]
    compared = [each for each in verdicts if each]
    return Standing(
        method=method,
        kind=mine[0].kind,
        tuned=" and ".join(
            dict.fromkeys(entry.tuned for entry in mine if entry.tuned and entry.method == method)
        ),
        shared=tuple(dict.fromkeys(entry.family for entry in mine if entry.method != method)),
        families=families,
        means=means,
        counts=counts,
        compared=len(compared),
        lowers=sum(all(down for down, _ in each) for each in compared),
        raises=sum(all(up for _, up in each) for each in compared),
    )


def _ranked(standings: list[Standing], families: int) -> list[Standing]:
    """Ranks and fronts for the methods that have a number in every family; the others come last and have none."""

    def whole(standing: Standing, name: str) -> float | None:
        return standing.means.get(name) if standing.counts.get(name) == families else None

    toxicity = [whole(standing, TOXICITY) for standing in standings]
    fronts = {
        axis: pareto_front([(whole(each, TOXICITY), whole(each, axis)) for each in standings])
        for axis in AXES
    }
    ranked = []
    for place, (standing, value) in enumerate(zip(standings, toxicity, strict=True)):
        better = sum(other is not None and value is not None and other < value for other in toxicity)
        ranked.append(
            replace(
                standing,
                rank=None if value is None else better + 1,
                fronts={axis: fronts[axis][place] for axis in AXES},
            )
        )
    return sorted(ranked, key=lambda standing: math.inf if standing.rank is None else standing.rank)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value
