"""Cells: family × method × seed, each with its settings; the unit that fails alone and gets a row of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unidetox_ray import registry
from unidetox_ray.config import Experiment
from unidetox_ray.errors import StageError, UnidetoxError
from unidetox_ray.experiment import MethodEntry, checked
from unidetox_ray.hashing import digest
from unidetox_ray.methods.base import DecodingMethod
from unidetox_ray.settings import Section
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.needs import COPIES, method_of

if TYPE_CHECKING:
    from unidetox_ray.stages.fits import Fitted


#: Behind the label of cells with their own family's setting, where it differs from the universal one. No entry's ends so.
OWN = "@own"


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
    fit: Any = None
    """Manifest of what its method fitted for the family."""
    tuned: Literal["universal", "own"] | None = None
    """Whose choice its settings are: the base family's, or its own family's; null where nothing was tuned."""
    training_values: dict[str, Any] = field(default_factory=dict)
    """Tuned fields of the fine-tuning, in the place of the experiment's and the search's."""

    @property
    def entry(self) -> str:
        """The label of its method entry, which several cells may stem from."""
        return self.method.label.removesuffix(OWN)

    @property
    def kind(self) -> str:
        return str(registry.lookup("methods", self.method.method).kind)


@dataclass(frozen=True)
class Tuned:
    """A setting that was chosen for an entry and a family; point: of the entry's grid, None with the error that says why."""

    label: str
    how: Literal["universal", "own"]
    point: dict[str, Any] | None
    error: str | None = None


def tuned_families(experiment: Experiment) -> tuple[str, ...]:
    """The families that trials are made on."""
    return (experiment.base_family,) if experiment.tuning.reuse == "universal" else experiment.families


def words(point: Mapping[str, Any]) -> str:
    """A point of a grid as people write it: alpha=0.5,expert=base."""
    return ",".join(f"{name}={f'{v:g}' if isinstance(v, float) else v}" for name, v in point.items())


def tuned_pairs(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """(own, universal): names of the cells that differ in whose setting they have, both with a model."""
    alive = {
        (cell.family, cell.method.label, cell.seed): cell.name for cell in cells if cell.model is not None
    }
    return [
        (cell.name, alive[cell.family, cell.entry, cell.seed])
        for cell in cells
        if cell.method.label.endswith(OWN)
        and cell.model is not None
        and (cell.family, cell.entry, cell.seed) in alive
    ]


def shaped(entry: MethodEntry, tuned: Tuned) -> MethodEntry:
    """The entry with a chosen setting, under the label of its cells."""
    point = {} if tuned.point is None or method_of(entry).kind == "corpus" else tuned.point
    return entry.model_copy(
        update={"label": tuned.label, "settings": {**entry.settings, **point}, "tune": {}}
    )


def seeds_of(experiment: Experiment, entry: MethodEntry) -> tuple[int, ...]:
    """The seeds of a method's cells. Only fine-tuning depends on one; other cells are the same under all, so there is one."""
    trained = method_of(entry).kind == "corpus"
    return experiment.all_seeds if trained else experiment.all_seeds[:1]


def cells_of(
    experiment: Experiment,
    bases: dict[str, Handle],
    tuned: Mapping[tuple[str, str], Sequence[Tuned]] | None = None,
) -> list[Cell]:
    """All cells, family by family. `base` has its model already.

    tuned: by (label, family), the choices that take the place of an entry's own settings, a cell each.
    """
    cells = []
    for family in experiment.families:
        for entry in experiment.methods:
            for choice in (tuned or {}).get((entry.label, family)) or (None,):
                made = entry if choice is None else shaped(entry, choice)
                for seed in seeds_of(experiment, entry):
                    cell = Cell(f"{family}-{made.label}-s{seed}", family, made, seed, bases[family])
                    if cell.kind == "unchanged":
                        cell.model = bases[family]
                    if choice is not None:
                        cell.tuned, cell.error = choice.how, choice.error
                        cell.training_values = dict(choice.point or {}) if cell.kind == "corpus" else {}
                    cells.append(cell)
    return cells


def steer(
    cells: Sequence[Cell],
    copies: Copies,
    fits: Mapping[tuple[str, str], Fitted | UnidetoxError] | None = None,
) -> None:
    """Gives every cell of a decoding method its model, which is the base model and what steers it, or its error.

    fits: what the stage `fits` left, by (label, family).
    """
    for cell in cells:
        method = method_of(cell.method)
        if not isinstance(method, DecodingMethod) or cell.error is not None:
            continue
        settings = checked(cell.method)
        needs = method.needed_for(settings)
        cell.settings = {
            "family": cell.family,
            "method": cell.method.label,
            "base_model": cell.base["name"],
            **settings.model_dump(),
        }
        try:
            models = copies.of([need for need in COPIES if need in needs], cell.family)
            fit = _fit_of(cell, fits or {}) if "fit" in needs else None
        except UnidetoxError as error:
            cell.error = str(error)
            continue
        if fit is not None:
            cell.fit = fit.manifest
            cell.settings |= {"fit_key": fit.key, **method.told(settings, fit.manifest.extra)}
        folder, key = (None, None) if fit is None else (fit.folder, fit.key)
        cell.model = steered_handle(cell.base, method, settings, models, folder, key)


def _fit_of(cell: Cell, fits: Mapping[tuple[str, str], Fitted | UnidetoxError]) -> Fitted:
    found = fits.get((cell.method.label, cell.family))
    if found is None:
        raise StageError(f"needs a fit of {cell.method.label} on {cell.family}, which was not made")
    if isinstance(found, UnidetoxError):
        raise found
    return found


def steered_handle(
    base: Handle,
    method: DecodingMethod,
    settings: Section,
    models: Mapping[Any, Handle],
    fit_folder: Path | None = None,
    fit_key: str | None = None,
) -> Handle:
    """What opens a base model and what steers it (`stages.opening`).

    models: the copies that the method needs, by need. fit_folder, fit_key: of the fit, for a method that needs one.
    """
    plain = settings.model_dump()
    inputs = {"base": base["key"]} | {str(need): model["key"] for need, model in models.items()}
    if fit_key is not None:
        inputs["fit"] = fit_key
    fit = None if fit_folder is None else str(fit_folder)
    return {
        **{name: base[name] for name in ("path", "revision", "family", "name")},
        "key": digest({"method": method.name, "settings": plain, "models": inputs})[:16],
        "steer": {"method": method.name, "settings": plain, "models": dict(models), "fit": fit},
    }
