"""What a cell cost: its training, edit or fit, its share of the stages, and what decoding with it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unidetox_ray.artifacts import Manifest
from unidetox_ray.stages.cells import Cell

_GIB = 1024**3


def costs_of(cells: Sequence[Cell], generated: Manifest, scored: Manifest) -> dict[str, dict[str, Any]]:
    """`costs` of each cell's row of results.json, by cell. What was not measured is not there; see docs/metrics.md."""
    alive = sum(cell.model is not None for cell in cells)
    decoded: Mapping[str, dict[str, Any]] = generated.extra.get("decode", {})
    tokens: Mapping[str, int] = generated.extra["tokens"]
    speeds = {
        name: tokens[name] / own["seconds"]
        for name, own in decoded.items()
        if own["seconds"] > 0 and tokens.get(name)
    }
    found = {}
    for cell in cells:
        costs: dict[str, Any] = {"device": "cpu"} | _making(cell)
        if cell.model is not None:
            # Stages judge all cells in one pool: a cell's share is by number, all having the same prompts.
            costs |= {
                "generate_seconds": round(generated.seconds / alive, 3),
                "score_seconds": round(scored.seconds / alive, 3),
                "generated_tokens": tokens.get(cell.name, 0),
            }
            costs |= _decoding(cell.name, _base_of(cell, cells), decoded, speeds)
        found[cell.name] = costs
    return found


def _making(cell: Cell) -> dict[str, Any]:
    """Of what was done before the cell could decode."""
    costs: dict[str, Any] = {}
    if cell.training is not None:
        extra = cell.training.extra
        costs |= {name: extra[name] for name in ("train_seconds", "train_tokens", "device")}
        names = {"train_step_ms": "step_ms", "train_tokens_per_second": "tokens_per_second", "mfu": "mfu"}
        costs |= {name: extra["speed"][key] for name, key in names.items() if key in extra["speed"]}
        if "trainable_parameters" in extra:
            costs["trainable_parameters"] = extra["trainable_parameters"]
    elif cell.fit is not None:
        costs |= {name: cell.fit.extra[name] for name in ("trainable_parameters", "fit_seconds")}
    elif cell.model is not None:
        costs["trainable_parameters"] = 0
    if cell.edit is not None:
        costs |= {name: cell.edit.extra[name] for name in ("edit_seconds", "device")}
    return costs


def _base_of(cell: Cell, cells: Sequence[Cell]) -> str | None:
    """The family's cell that nothing was done to; its own name for such a cell."""
    same = (other for other in cells if other.family == cell.family and other.kind == "unchanged")
    return next((other.name for other in same), None)


def _decoding(
    name: str, base: str | None, decoded: Mapping[str, dict[str, Any]], speeds: Mapping[str, float]
) -> dict[str, Any]:
    """Time and memory of one cell's decoding; what is relative needs a base cell. speeds: tokens a second, by cell."""
    if name not in decoded:
        return {}
    costs: dict[str, Any] = {"decode_seconds": round(decoded[name]["seconds"], 3)}
    if name in speeds:
        costs["decode_tokens_per_second"] = _rounded(speeds[name])
        if base is not None and base in speeds:
            costs["decode_relative_cost"] = _rounded(speeds[base] / speeds[name])
    extra = decoded[name]["extra_bytes"]
    if extra is None and base is not None and base in decoded:
        extra = decoded[name]["weight_bytes"] - decoded[base]["weight_bytes"]
    if extra is not None:
        costs["extra_memory_gib"] = _rounded(extra / _GIB)
    return costs


def _rounded(value: float, figures: int = 4) -> float:
    """To so many significant figures: clocks say no more, and small models are far below a GiB."""
    return round(value, figures - 1 - math.floor(math.log10(abs(value)))) if value else 0.0
