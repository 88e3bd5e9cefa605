"""Tolerant readers: a part of a run folder that is absent gives None, a damaged one gives None and a problem.

Only `results.json` is strict (see `load.load`): a report of damaged results would mislead.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from unidetox_ray.report import text

MAX_CURVE_POINTS = 200


def _problem(problems: list[str], name: str, error: BaseException) -> None:
    problems.append(f"{name} could not be read: {text.clean(error, 160)}")


def read_json(path: Path, problems: list[str], name: str) -> Any | None:
    """The parsed JSON of `path`, or None."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _problem(problems, name, error)
        return None


def read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    """The resolved configuration as nested dicts; empty when it is absent or not a mapping."""
    if not path.is_file():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        _problem(problems, path.name, error)
        return {}
    if not isinstance(loaded, dict):
        problems.append(f"{path.name} holds no mapping of settings")
        return {}
    return loaded


def mapping(value: Any) -> dict[str, Any]:
    """The value itself when it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def read_table(path: Path, needed: tuple[str, ...], problems: list[str], name: str) -> pl.DataFrame | None:
    """The parquet table at `path` when it opens and has the `needed` columns, otherwise None."""
    if not path.is_file():
        return None
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        _problem(problems, name, error)
        return None
    missing = [column for column in needed if column not in table.columns]
    if missing:
        problems.append(f"{name} has no column {missing[0]!r}")
        return None
    return table


def sha256(path: Path) -> str | None:
    """Hex digest of a file's bytes; None when it is absent."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def thin(steps: list[int], losses: list[float], most: int = MAX_CURVE_POINTS) -> list[tuple[float, float]]:
    """At most `most` points (step, loss): means over runs of consecutive points, ends kept as measured."""
    points = [(float(s), float(v)) for s, v in zip(steps, losses, strict=True) if v is not None]
    points = [point for point in points if text.is_number(point[1])]
    if len(points) <= most:
        return points
    inner, groups = points[1:-1], most - 2
    cuts = [len(inner) * index // groups for index in range(groups + 1)]
    runs = [inner[start:end] for start, end in pairwise(cuts)]
    means = [(sum(s for s, _ in run) / len(run), sum(v for _, v in run) / len(run)) for run in runs]
    return [points[0], *means, points[-1]]


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value) pairs in their own order; secrets and user info left out."""
    if isinstance(tree, dict):
        pairs: list[tuple[str, str]] = []
        for key, value in tree.items():
            pairs += flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return pairs or [(prefix, "{}")] if prefix else pairs
    last = prefix.rpartition(".")[2].lower()
    if any(last == word or last.endswith("_" + word) for word in ("token", "password", "secret", "api_key")):
        return [(prefix, "withheld")]
    if isinstance(tree, list):
        shown = ", ".join(_scalar(item) for item in tree)
        return [(prefix, f"[{shown}]")]
    return [(prefix, _scalar(tree))]


def _scalar(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return text.rate(value) if abs(value) < 1e-2 and value else f"{value:g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_scalar(item)}" for key, item in value.items()) + "}"
    return text.without_secrets(text.clean(value, 300))
