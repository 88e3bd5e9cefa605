"""From judged rows to results.json: every metric of every cell with its interval and its difference to base.

Reads the tables GENERATIONS, SCORES and PROMPTS, trains and scores nothing, and so can be run again at will. Prompts
are the clusters of the bootstrap (questions for mmlu, texts for clean_ppl). A failure is never a number: failed
judgements are counted in `failed`, and a metric that lost more than `max_failed_share` of them is withheld (null).
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import polars as pl

from unidetox_ray import artifacts, schemas
from unidetox_ray.errors import ArtifactError, DataError
from unidetox_ray.metrics.measure import Measured, Measurements, ResultSettings, measure
from unidetox_ray.metrics.stats import Floats, interval, paired_difference
from unidetox_ray.metrics.toxicity import main_scorer

__all__ = ["CellInfo", "ResultSettings", "cell_results", "read_results", "write_results"]

BASE = "base"
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class CellInfo:
    """What is known of a cell beside its rows. `method` is the label of the method entry."""

    cell: str
    family: str
    model: str
    method: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    status: Literal["ok", "failed"] = "ok"
    error: str | None = None
    costs: dict[str, Any] = field(default_factory=dict)
    is_base: bool | None = None
    """Whether other cells of the family are compared with this one; None = where the method's label is "base"."""

    @property
    def is_reference(self) -> bool:
        return self.method == BASE if self.is_base is None else self.is_base


def cell_results(
    scores: pl.DataFrame,
    generations: pl.DataFrame,
    prompts: pl.DataFrame,
    *,
    cells: Sequence[CellInfo],
    settings: ResultSettings,
) -> list[dict[str, Any]]:
    """One row of results.json per cell, in the order of `cells`.

    scores, generations, prompts: tables of these schemas; prompts that no cell was asked to continue are left out, and
    one that some cells continued and others did not counts as failed in the latter. DataError, ConfigError.
    """
    known = pl.Series([cell.cell for cell in cells], dtype=pl.String)
    if known.n_unique() < len(cells):
        raise DataError(
            f"cells: {known.filter(known.is_duplicated())[0]!r} is listed twice; a cell id must be unique"
        )
    live = [cell.cell for cell in cells if cell.status == "ok"]
    return list(_rows(cells, measure(scores, generations, prompts, live, settings), settings))


def _base_of(info: CellInfo, cells: Sequence[CellInfo]) -> str | None:
    """The base cell of the same family and seed; the family's only base cell where no seed matches."""
    bases = [c for c in cells if c.family == info.family and c.is_reference and c.status == "ok"]
    same = [c for c in bases if c.seed == info.seed]
    chosen = same or (bases if len(bases) == 1 else [])
    return chosen[0].cell if chosen and not info.is_reference else None


def _rows(
    cells: Sequence[CellInfo], measured: Measurements, settings: ResultSettings
) -> Iterator[dict[str, Any]]:
    found, references = measured.metrics, {_base_of(info, cells) for info in cells}
    scorer = main_scorer(measured.tables)
    # Every difference needs the draws of its base cell; those of other cells are dropped with their row.
    kept = {base: _draws(found[base]) for base in references if base is not None}
    head = ("family", "model", "method", "seed", "settings", "status", "error", "cell")
    for info in cells:
        row: dict[str, Any] = {name: getattr(info, name) for name in head}
        row |= {"metrics": {}, "domains": {}, "scorer": scorer, "costs": info.costs}
        if info.status == "ok":
            base = _base_of(info, cells)
            draws = kept[info.cell] if info.cell in kept else _draws(found[info.cell])
            for name, metric in found[info.cell].items():
                reference = found[base].get(name) if base is not None else None
                pair = (draws[name], kept[base][name]) if base is not None and reference is not None else None
                row["metrics"][name] = _entry(metric, draws[name], reference, pair, settings)
            row["domains"] = _domain_entries(measured, info.cell, settings)
        yield row


def _draws(metrics: Mapping[Key, Measured]) -> dict[Key, Floats]:
    """All metrics of a cell that share their clusters are resampled in one product."""
    drawn: dict[Key, Floats] = {}
    for resampler in {id(m.resampler): m.resampler for m in metrics.values()}.values():
        names = [name for name, measured in metrics.items() if measured.resampler is resampler]
        drawn.update(zip(names, resampler.draws([metrics[name].statistic for name in names]), strict=True))
    return drawn


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _entry(
    measured: Measured,
    draws: Floats,
    base: Measured | None,
    pair: tuple[Floats, Floats] | None,
    settings: ResultSettings,
) -> dict[str, Any]:
    entry: dict[str, Any] = dict.fromkeys(
        ("value", "ci_low", "ci_high", "n", "diff", "diff_low", "diff_high")
    )
    entry |= {"n": measured.statistic.n, "failed": measured.failed}
    reason = measured.reason(settings.max_failed_share)
    if reason is not None:
        return entry | {"reason": reason}
    found = interval(measured.statistic, draws)
    entry |= {"value": _number(found.value), "ci_low": _number(found.low), "ci_high": _number(found.high)}
    if base is not None and base.reason(settings.max_failed_share) is None:
        diff = paired_difference(measured.resampler, measured.statistic, base.statistic, draws=pair)
        entry |= {"diff": _number(diff.value), "diff_low": _number(diff.low), "diff_high": _number(diff.high)}
    return entry


def _domain_entries(measured: Measurements, cell: str, settings: ResultSettings) -> dict[str, Any]:
    metrics = measured.domains[cell]
    drawn = _draws(metrics)
    entries: dict[str, Any] = {}
    for domain, distribution in measured.tables.space.domains.items():
        names = [name for name, where in metrics if where == domain]
        if names:
            entries[domain] = {"distribution": distribution}
        for name in names:
            full = _entry(metrics[name, domain], drawn[name, domain], None, None, settings)
            entries[domain][name] = {key: full[key] for key in ("value", "ci_low", "ci_high", "n")}
    return entries


def _strict(value: Any) -> Any:
    """Settings and costs as strict JSON: infinity and NaN become text ("inf", "nan")."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_results(rows: Sequence[dict[str, Any]], run_dir: Path) -> None:
    """results.json (strict JSON) and results.parquet (schema RESULTS, one row per cell and metric) in `run_dir`."""
    artifacts.write_json(run_dir / "results.json", [_strict(row) for row in rows])
    flat = []
    for row in rows:
        head = {name: row[name] for name in ("family", "model", "method", "seed", "status", "error")}
        head["settings"] = json.dumps(_strict(row["settings"]), sort_keys=True, default=str)
        empty: dict[str, dict[str, Any]] = {"": {}}
        for name, entry in (row["metrics"] or empty).items():
            flat.append(
                head
                | {"metric": name or None, **{k: entry.get(k) for k in ("value", "ci_low", "ci_high", "n")}}
            )
    artifacts.write_parquet(run_dir / "results.parquet", schemas.frame(flat, schemas.RESULTS))


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of results.json in `run_dir` (or of that file itself). ArtifactError when it is missing or damaged."""
    path = run_dir / "results.json" if run_dir.is_dir() else run_dir
    rows = artifacts.read_json(path)
    needed = {"cell", "family", "method", "status", "metrics"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise ArtifactError(
            f"{path}: not a list of results with {sorted(needed)}; run the report stage again"
        )
    return rows
