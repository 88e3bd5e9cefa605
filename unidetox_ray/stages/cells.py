"""Cells: family × method × seed, each with its settings; the unit that fails alone and gets a row of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unidetox_ray import registry
from unidetox_ray.config import Experiment, MethodEntry, checked, digest
from unidetox_ray.errors import ModelError
from unidetox_ray.methods.base import DecodingMethod
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.needs import COPIES, method_of


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
    edit: Any = None
    """Manifest of its edit, where its method edits weights."""

    @property
    def kind(self) -> str:
        return str(registry.lookup("methods", self.method.method).kind)


def seeds_of(experiment: Experiment, entry: MethodEntry) -> tuple[int, ...]:
    """The seeds of a method's cells. Only fine-tuning depends on one; other cells are the same under all, so there is one."""
    trained = method_of(entry).kind == "corpus"
    return experiment.all_seeds if trained else experiment.all_seeds[:1]


def cells_of(experiment: Experiment, bases: dict[str, Handle]) -> list[Cell]:
    """All cells, family by family. `base` has its model already."""
    cells = []
    for family in experiment.families:
        for entry in experiment.methods:
            for seed in seeds_of(experiment, entry):
                cell = Cell(f"{family}-{entry.label}-s{seed}", family, entry, seed, bases[family])
                if cell.kind == "unchanged":
                    cell.model = bases[family]
                cells.append(cell)
    return cells


def steer(cells: Sequence[Cell], copies: Copies) -> None:
    """Gives every cell of a decoding method its model, which is the base model and what steers it, or its error."""
    for cell in cells:
        method = method_of(cell.method)
        if not isinstance(method, DecodingMethod):
            continue
        settings = checked(cell.method)
        needs = method.needed_for(settings)
        plain = settings.model_dump()
        cell.settings = {
            "family": cell.family,
            "method": cell.method.label,
            "base_model": cell.base["name"],
            **plain,
        }
        try:
            models = copies.of([need for need in COPIES if need in needs], cell.family)
        except ModelError as error:
            cell.error = str(error)
            continue
        inputs = {"base": cell.base["key"]} | {str(need): model["key"] for need, model in models.items()}
        cell.model = {
            **{name: cell.base[name] for name in ("path", "revision", "family", "name")},
            "key": digest({"method": method.name, "settings": plain, "models": inputs})[:16],
            "steer": {"method": method.name, "settings": plain, "models": models, "fit": None},
        }
