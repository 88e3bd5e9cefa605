"""Cells: family × method × seed, each with its settings; the unit that fails alone and gets a row of results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unidetox_ray import registry
from unidetox_ray.config import Experiment, MethodEntry
from unidetox_ray.stages.models import Handle


@dataclass
class Cell:
    """One combination. `model` opens the model that is evaluated; null until it exists."""

    name: str
    family: str
    method: MethodEntry
    seed: int
    base: Handle
    settings: dict[str, Any] = field(default_factory=dict)
    model: Handle | None = None
    error: str | None = None
    training: Any = None
    """Manifest of its training, where it has one."""

    training_folder: str = ""

    @property
    def kind(self) -> str:
        return str(registry.lookup("methods", self.method.method).kind)


def cells_of(experiment: Experiment, bases: dict[str, Handle]) -> list[Cell]:
    """All cells, family by family. `base` does not depend on a seed, so it is one cell however many seeds there are."""
    cells = []
    for family in experiment.families:
        for entry in experiment.methods:
            unchanged = registry.lookup("methods", entry.method).kind == "unchanged"
            for seed in experiment.all_seeds[:1] if unchanged else experiment.all_seeds:
                cell = Cell(f"{family}-{entry.label}-s{seed}", family, entry, seed, bases[family])
                if unchanged:
                    cell.model = bases[family]
                cells.append(cell)
    return cells
