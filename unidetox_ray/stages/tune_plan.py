"""The trials of a tuning: which there are, and what each is told. Nothing is measured here.

A trial of a corpus method is a training's job with a step to measure at; the others are tasks of `stages.trials`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import Manifest, key_for
from unidetox_ray.config import Experiment
from unidetox_ray.errors import UnidetoxError
from unidetox_ray.experiment import MethodEntry, checked
from unidetox_ray.methods.base import WeightsMethod
from unidetox_ray.settings import FinetuneSection, SearchSection
from unidetox_ray.stages import fits
from unidetox_ray.stages.cells import Cell, steer, tuned_families, words
from unidetox_ray.stages.choice import plain
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.edit import config_of, edit_task, inputs_of, toxic_of
from unidetox_ray.stages.finetune import steps_of, training_of
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.needs import method_of
from unidetox_ray.stages.search import trial_jobs
from unidetox_ray.stages.training import Job

#: The label of base models among the trials; no entry has it.
BASE = ""


@dataclass
class Trial:
    """One point of one entry on one family, or a family's base model. error: why it cannot be tried at all."""

    name: str
    family: str
    label: str
    point: dict[str, Any]
    task: dict[str, Any] | None = None
    """What `stages.trials` measures."""
    job: Job | None = None
    """The training that measures it at `step`."""
    step: int | None = None
    error: str | None = None

    @property
    def folder(self) -> Path:
        """Where its numbers are; a training's are shared by the trials of its steps."""
        return Path(self.job.folder if self.job is not None else self.task["folder"] if self.task else "")

    @property
    def key(self) -> str:
        return str(self.job.key if self.job is not None else self.task["key"] if self.task else "")


def plan(
    context: Context,
    bases: dict[str, Handle],
    corpora: Mapping[str, tuple[Path, Manifest]],
    copies: Copies,
    probe: dict[str, Any],
    place: Path,
) -> list[Trial]:
    """Every trial of the experiment: base models first, then entry by entry, family by family, in the grids' order.

    probe: see `stages.probe`. place: the folder that trials measured like that lie in.
    """
    found = _base_trials(context, bases, probe, place)
    found += _measurements(context, bases, copies, probe, place)
    for entry in context.experiment.methods:
        if entry.tune and method_of(entry).kind == "corpus":
            found += _trainings(context, entry, bases, corpora[entry.label], probe, place)
    return found


def _base_trials(context: Context, bases: dict[str, Handle], probe: Any, place: Path) -> list[Trial]:
    """The base model of each family, which every ratio is to and every curve starts from."""
    trials = []
    for family in tuned_families(context.experiment):
        trial = Trial(f"{family}-base", family, BASE, {})
        trial.task = _task(context, trial, bases[family], None, probe, place)
        trials.append(trial)
    return trials


def _measurements(
    context: Context, bases: dict[str, Handle], copies: Copies, probe: Any, place: Path
) -> list[Trial]:
    """The trials of weights and decoding methods; fits that decoding needs are made here, each once."""
    experiment = context.experiment
    pairs: list[tuple[Trial, Cell]] = []
    for entry in experiment.methods:
        if not entry.tune or method_of(entry).kind == "corpus":
            continue
        for family in tuned_families(experiment):
            for point, variant in zip(entry.points, entry.variants, strict=True):
                typed = _typed(variant, point)
                label = f"{entry.label}@{words(typed)}"
                made = variant.model_copy(update={"label": label, "tune": {}})
                cell = Cell(f"{family}-{label}", family, made, experiment.all_seeds[0], bases[family])
                pairs.append((Trial(f"{family}-{entry.label}-{words(typed)}", family, entry.label, typed), cell))  # fmt: skip
    cells = [cell for _, cell in pairs]
    steer(cells, copies, fits.run(context, cells, bases))
    for trial, cell in pairs:
        try:
            edit = _edit_of(cell, copies, place)
        except UnidetoxError as error:
            cell.error = str(error)
        trial.error = cell.error
        if trial.error is None:
            trial.task = _task(context, trial, cell.model, edit, probe, place)
    return [trial for trial, _ in pairs]


def _edit_of(cell: Cell, copies: Copies, place: Path) -> dict[str, Any] | None:
    """The edit of a weights method's trial; None for other methods. The folder is the trial's own affair."""
    method = method_of(cell.method)
    if not isinstance(method, WeightsMethod):
        return None
    toxic = toxic_of(cell, method, copies)
    key = key_for("edit", config_of(cell, method), inputs_of(cell, toxic))
    return edit_task(cell, method, toxic, place, key)


def _task(
    context: Context, trial: Trial, model: Handle | None, edit: dict[str, Any] | None, probe: Any, place: Path
) -> dict[str, Any]:
    """What `stages.trials.measure_trial` is told. model, edit: one of the two."""
    source = edit if edit is not None else model
    assert source is not None
    inputs = {"probe": place.name, "model": str(source["key"])}
    config = {"family": trial.family, "method": trial.label or "base", "settings": plain(trial.point)}
    key = key_for("trial", config, inputs)
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", trial.name)[:120]
    task = {
        "name": trial.name, "key": key, "folder": str(place / f"{name}-{key}"), "model": model, "edit": edit, "probe": probe,
        "config": config, "inputs": inputs, "threads": context.experiment.cluster.threads, "precision": context.experiment.evaluate.precision,
    }  # fmt: skip
    return dict(plain(task))


def _trainings(
    context: Context,
    entry: MethodEntry,
    bases: dict[str, Handle],
    corpus: tuple[Path, Manifest],
    probe: dict[str, Any],
    place: Path,
) -> list[Trial]:
    """The trials of a corpus method: one training per rate at a constant rate, measured at every step count."""
    trials = []
    for family in tuned_families(context.experiment):
        seed = context.experiment.all_seeds[0]
        cell = Cell(f"{family}-{entry.label}-s{seed}", family, entry, seed, bases[family])
        if "steps" in entry.tune:
            cell.training_values = {"epochs": None}  # which would take the steps' place
        grid = _steps_and_rates(context.experiment, cell, corpus[0] / "corpus.parquet")

        def shaped(section: FinetuneSection, cell: Cell = cell) -> FinetuneSection:
            return training_of(cell, section)

        for made in trial_jobs(context, cell, corpus, grid, probe, place / f"{family}-{entry.label}", shaped):
            folder = f"{made.folder}-{made.key}"
            name = f"{family}-{entry.label}-{made.name}"
            job = replace(made, name=name, folder=folder, probe={**(made.probe or {}), "keep": folder})
            for step in (made.probe or {})["steps"]:
                every = {"steps": step, "lr": job.loop["lr"]}
                point = {setting: every[setting] for setting in entry.tune}
                named = f"{family}-{entry.label}-{words(point)}"
                trials.append(Trial(named, family, entry.label, point, job=job, step=step))
    return trials


def _steps_and_rates(experiment: Experiment, cell: Cell, corpus: Path) -> SearchSection:
    """An entry's grid as the search's settings; what it leaves out stays as the cell would be trained."""
    tune, section = cell.method.tune, training_of(cell, experiment.finetune)
    steps = tune["steps"] if "steps" in tune else (steps_of(section, corpus, cell.name),)
    return SearchSection(
        steps=steps, lr=tune.get("lr", (section.lr,)), method=cell.method.label, schedule="constant"
    )


def _typed(variant: MethodEntry, point: Mapping[str, Any]) -> dict[str, Any]:
    """A point with its values as the settings' types have them. variant: the entry at this point."""
    settings = checked(variant)
    return {name: getattr(settings, name) for name in point}


def points_of(trials: Sequence[Trial], label: str, family: str) -> list[dict[str, Any]]:
    """The points that an entry was tried at on a family, in the order of its trials."""
    return [trial.point for trial in trials if (trial.label, trial.family) == (label, family)]
