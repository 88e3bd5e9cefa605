"""leaderboard.json and leaderboard.csv of a run, and the same numbers as tables for a tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import artifacts
from unidetox_ray.leaderboard.board import AXES, RATIO, Board, Entry, Standing

JSON, CSV = "leaderboard.json", "leaderboard.csv"
#: Numbers of a metric that go beside its value, and what their columns end in.
_PARTS = {
    "low": "ci_low",
    "high": "ci_high",
    "diff": "diff",
    "diff_low": "diff_low",
    "diff_high": "diff_high",
}
#: What a spreadsheet takes for the start of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def cell_table(board: Board) -> pl.DataFrame:
    """One line per cell: who, status, every measure with interval and paired difference to base, fronts, costs.

    `front_<axis>` is null where a cell has no point there. Numbers are float64, null where withheld.
    """
    schema: dict[str, Any] = dict.fromkeys(("cell", "family", "method", "kind", "tuned"), pl.String)
    schema |= {"seed": pl.Int64, "status": pl.String, "error": pl.String}
    for name in board.measures:
        schema[name] = pl.Float64
        schema |= dict.fromkeys((f"{name}_{part}" for part in _PARTS), pl.Float64)
    schema[RATIO] = pl.Float64
    schema |= dict.fromkeys((f"front_{axis}" for axis in AXES), pl.Boolean)
    schema |= dict.fromkeys(board.costs, pl.Float64)
    return pl.DataFrame([_cell_line(entry, board) for entry in board.entries], schema=schema, strict=False)


def _cell_line(entry: Entry, board: Board) -> dict[str, Any]:
    line: dict[str, Any] = {
        name: getattr(entry, name) or None for name in ("cell", "family", "method", "kind", "tuned", "error")
    }
    line |= {"seed": entry.seed, "status": "ok" if entry.ok else "failed"}
    for name in board.measures:
        line[name] = entry.value(name)
        stored = entry.metrics.get(name, {})
        line |= {f"{name}_{part}": stored.get(key) for part, key in _PARTS.items()}
    line[RATIO] = entry.ratio
    line |= {f"front_{axis}": entry.fronts[axis] for axis in AXES}
    return line | {name: entry.costs.get(name) for name in board.costs}


def method_table(board: Board) -> pl.DataFrame:
    """One line per method in the order of its rank: means over families, in how many of them it lowers toxicity.

    `incomplete` names the means that are over fewer families than the run has, since the others have no number.
    """
    names = [name for name in (*board.measures, RATIO, *board.costs) if _averaged(board, name)]
    schema: dict[str, Any] = {"rank": pl.Int64, "method": pl.String, "kind": pl.String, "tuned": pl.String}
    schema |= dict.fromkeys(("families", "compared", "lowers", "raises"), pl.Int64)
    schema |= dict.fromkeys(names, pl.Float64)
    schema["incomplete"] = pl.String
    schema |= dict.fromkeys((f"front_{axis}" for axis in AXES), pl.Boolean)
    lines = [_method_line(standing, names) for standing in board.standings]
    return pl.DataFrame(lines, schema=schema, strict=False)


def _averaged(board: Board, name: str) -> bool:
    return any(name in standing.means for standing in board.standings)


def _method_line(standing: Standing, names: list[str]) -> dict[str, Any]:
    line: dict[str, Any] = {
        name: getattr(standing, name)
        for name in ("rank", "method", "families", "compared", "lowers", "raises")
    }
    line |= {"kind": standing.kind or None, "tuned": standing.tuned or None}
    line |= {name: standing.means.get(name) for name in names}
    short = [
        f"{name}: {counted} of {standing.families}"
        for name in names
        if 0 < (counted := standing.counts.get(name, 0)) < standing.families
    ]
    line["incomplete"] = "; ".join(short) or None
    return line | {f"front_{axis}": standing.fronts[axis] for axis in AXES}


def write_leaderboard(board: Board, folder: Path) -> None:
    """Both files in `folder`. The CSV has the methods' means first (`row` = "mean"), then the cells (`row` = "cell")."""
    cells, methods = cell_table(board), method_table(board)
    left_out = {axis: list(names) for axis, names in board.left_out.items()}
    artifacts.write_json(
        folder / JSON, {"methods": methods.to_dicts(), "cells": cells.to_dicts(), "on_no_front": left_out}
    )
    rows = [
        table.select(pl.lit(kind).alias("row"), pl.all())
        for kind, table in (("mean", methods), ("cell", cells))
    ]
    artifacts.write_text(folder / CSV, safe_for_spreadsheets(pl.concat(rows, how="diagonal")).write_csv())


def safe_for_spreadsheets(table: pl.DataFrame) -> pl.DataFrame:
    """A quote before every text that a spreadsheet would run as a formula; numbers stay as they are."""
    text = pl.col(pl.String)
    return table.with_columns(
        pl.when(text.str.slice(0, 1).is_in(_FORMULA)).then(pl.lit("'") + text).otherwise(text).name.keep()
    )
