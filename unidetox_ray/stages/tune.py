"""Tuning: every method entry with a `tune:` grid, on validation prompts; part of the stage `search`.

Every point of a grid is a trial, on the base family and, unless `tuning.reuse` is universal, on every other one. Corpus
methods are trained and measured by the jobs of `stages.search` at a constant rate; models of the other kinds are opened
or edited and measured by `stages.trials`. Trials lie in a folder of their own, keyed by how they are measured, so that
a larger grid measures only what is new.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from unidetox_ray.artifacts import (
    Manifest,
    finished,
    key_for,
    private_folder,
    read_json,
    write_json,
    write_manifest,
)
from unidetox_ray.config import Experiment
from unidetox_ray.errors import StageError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.metrics.curves import Statistics, TrialSpace
from unidetox_ray.settings import SearchSection
from unidetox_ray.stages import held
from unidetox_ray.stages.cells import OWN, Tuned, tuned_families
from unidetox_ray.stages.choice import Dial, Row, choose, curves, ends, plain
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.generate import TEXT_FIELDS
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.needs import method_of
from unidetox_ray.stages.probe import values_file
from unidetox_ray.stages.scorers import scorer_specs
from unidetox_ray.stages.search import probe_in, run_trials, selection
from unidetox_ray.stages.tune_plan import BASE, Trial, plan, points_of

#: Fields of `evaluate` that change what a trial measures.
_FIELDS = {*TEXT_FIELDS, "threshold", "max_failed_share", "clean_max_length"}
#: Numbers of a trial that are shown.
_NUMBERS = ("tp_id", "tp_ood", "tp_all", "emt_id", "emt_ood", "emt_all", "clean_ppl")


@dataclass(frozen=True)
class Tuning:
    """choices: by label and family, what takes the place of an entry's own settings. values: what tuning.json holds."""

    choices: dict[tuple[str, str], list[Tuned]]
    values: dict[str, Any]
    manifest: Manifest


def run(
    context: Context,
    bases: dict[str, Handle],
    corpora: dict[str, tuple[Path, Manifest]],
    copies: Copies,
    scorers: dict[str, Handle],
) -> Tuning | None:
    """Measure what is not measured yet and choose; None where no entry has a grid.

    An entry or family all of whose trials failed has no choice, and the reason; StageError without validation prompts.
    """
    experiment = context.experiment
    if not any(entry.tune for entry in experiment.methods):
        return None
    started, before = time.perf_counter(), len(context.stages)
    evaluate, prompts = selection(context, experiment.tuning)
    if prompts.height == 0:
        raise StageError(
            "tuning: data.prompts has no validation row; the choice needs prompts that the test does not use"
        )
    spec = scorer_specs(experiment, scorers)[0]
    how = {
        "evaluate": evaluate.model_dump(mode="json", include=_FIELDS), "limit": experiment.limit,
        "prompts_per_domain": experiment.tuning.prompts_per_domain,
        "scorer": [spec["model"]["key"], spec["label"]] if "model" in spec else spec,
    }  # fmt: skip
    clean = experiment.data.clean
    inputs = {"prompts": context.prompts_sha()}
    if clean is not None:
        inputs["clean"] = context.data("clean", clean).sha256
    place = private_folder(context.folder.stage("trials", key_for("trials", how, inputs)))
    probe = probe_in(place, context, evaluate, prompts, spec)
    trials = plan(context, bases, corpora, copies, probe, place)
    # Planning fits what steers, a stage of its own with a line of its own: not counted twice.
    started += sum(float(stage["seconds"]) for stage in context.stages[before:])

    config = {
        "tuning": experiment.tuning.model_dump(mode="json", exclude={"max_concurrent"}),
        "bootstrap": evaluate.bootstrap, "seed": experiment.seed, "families": list(tuned_families(experiment)),
    }  # fmt: skip
    key = key_for("tune", config, {**inputs, **{trial.name: trial.key for trial in trials}})
    folder = private_folder(context.folder.stage("tune", key))
    manifest = finished(folder, key)
    reused = manifest is not None and not manifest.counts["failed"]  # a trial that failed is tried again
    if manifest is None or not reused:
        errors = _measure(context, trials, f"tune-{key}")
        write_json(folder / "tuning.json", _outcome(context, trials, errors, prompts, probe))
        failed = sum(_manifest(trial) is None for trial in trials)
        manifest = write_manifest(
            folder, stage="tune", key=key, seconds=time.perf_counter() - started, config=config, inputs=inputs,
            counts={"expected": len(trials), "ok": len(trials) - failed, "failed": failed}, extra={"name": "tune"},
        )  # fmt: skip
    context.record(
        "tune", key, time.perf_counter() - started, reused=reused,
        devices=held.by_trials(context, len(trials), experiment.tuning.max_concurrent),
    )  # fmt: skip
    values = read_json(folder / "tuning.json")
    return Tuning(choices(experiment, values), values, manifest)


def choices(experiment: Experiment, tuning: Mapping[str, Any]) -> dict[tuple[str, str], list[Tuned]]:
    """What of tuning.json becomes cells: per entry and family the universal setting, its own, or both where they differ."""
    reuse, found = experiment.tuning.reuse, {}
    for label, entry in tuning["entries"].items():
        for family in experiment.families:
            if reuse == "universal":
                found[label, family] = [_tuned(label, "universal", entry["universal"])]
                continue
            own = _tuned(label, "own", entry["families"][family])
            if reuse == "per_model":
                found[label, family] = [own]
                continue
            universal = _tuned(label, "universal", entry["universal"])
            same = family == experiment.base_family or (
                own.point is not None and own.point == universal.point
            )
            found[label, family] = [universal] if same else [universal, replace(own, label=label + OWN)]
    return found


def _tuned(label: str, how: Literal["universal", "own"], choice: Mapping[str, Any]) -> Tuned:
    error = None if choice["chosen"] is not None else f"tuning: {choice['reason']}"
    return Tuned(label, how, choice["chosen"], error)


def _measure(context: Context, trials: Sequence[Trial], name: str) -> dict[Path, str]:
    """Everything that is not finished; errors by trial folder."""
    from unidetox_ray.stages.trials import run_measurements

    tuning = context.experiment.tuning
    tasks = [trial.task for trial in trials if trial.task is not None]
    found = run_measurements(context, tasks, name, tuning.max_concurrent)
    errors = {Path(folder): text for folder, text in found.items()}
    jobs = list({trial.job.folder: trial.job for trial in trials if trial.job is not None}.values())
    if jobs:
        settings = SearchSection(metric=tuning.metric, max_concurrent=tuning.max_concurrent)
        failed = run_trials(context, jobs, settings, f"{name}-trainings")
        errors |= {Path(job.folder): failed[job.name][0] for job in jobs if job.name in failed}
    return errors


def _manifest(trial: Trial) -> Manifest | None:
    return finished(trial.folder, trial.key) if trial.error is None else None


def _row(trial: Trial, errors: Mapping[Path, str]) -> Row:
    """One trial as tuning.json has it: what was measured, or why nothing was."""
    row: Row = {"trial": trial.name, "settings": plain(trial.point), "key": trial.key}
    manifest, values = _manifest(trial), None
    if manifest is not None:
        found = [manifest.extra["values"]] if trial.step is None else manifest.extra["measured"]
        values = next((each for each in found if trial.step in (None, each.get("step"))), None)
    if manifest is None or values is None:
        error = trial.error or errors.get(trial.folder, "no measurement was left")
        return {**row, "status": "failed", "error": error, "seconds": None}
    numbers = {name: values[name] for name in _NUMBERS if name in values}
    return {**row, **numbers, "status": "ok", "error": None, "seconds": manifest.seconds}


def _outcome(
    context: Context,
    trials: Sequence[Trial],
    errors: Mapping[Path, str],
    prompts: pl.DataFrame,
    probe: Mapping[str, Any],
) -> dict[str, Any]:
    """What tuning.json holds."""
    experiment, tuning = context.experiment, context.experiment.tuning
    texts = [] if probe["clean"] is None else pl.read_parquet(probe["clean"])["text_id"].to_list()
    space = TrialSpace(prompts, texts, experiment.evaluate.bootstrap, experiment.seed)
    rows: dict[tuple[str, str], list[Row]] = {}
    statistics: dict[str, Statistics] = {}
    for trial in trials:
        row = _row(trial, errors)
        if row["status"] == "ok":
            statistics[trial.name] = space.statistics(pl.read_parquet(values_file(trial.folder, trial.step)))
            for name, found in space.intervals(statistics[trial.name]).items():
                row |= {f"{name}_{end}": ends(found)[end] for end in ("low", "high")}
        rows.setdefault((trial.label, trial.family), []).append(row)
    bases = {family: rows[BASE, family][0] for family in tuned_families(experiment)}
    for (_, family), mine in rows.items():
        for row in mine:
            known = texts and row["status"] == bases[family]["status"] == "ok"
            row["ratio"] = row["clean_ppl"] / bases[family]["clean_ppl"] if known else None

    def family_part(entry: MethodEntry, family: str) -> dict[str, Any]:
        mine, points = rows[entry.label, family], points_of(trials, entry.label, family)
        dial = _dial(entry, points)
        choice = choose(
            mine, _weakness(points, dial), metric=tuning.metric, max_clean_ppl=tuning.max_clean_ppl,
            base=bases[family], judged=bool(texts),
        )  # fmt: skip
        drawn = [] if dial is None else curves(mine, dial, statistics, bases[family], space)
        return {"trials": mine, "chosen": choice.point, "reason": choice.reason, "curves": drawn}

    told = {}
    for entry in (entry for entry in experiment.methods if entry.tune):
        families = {family: family_part(entry, family) for family in tuned_families(experiment)}
        universal = None
        if tuning.reuse != "per_model":
            universal = {name: families[experiment.base_family][name] for name in ("chosen", "reason")}
        kind = method_of(entry).kind
        told[entry.label] = {
            "method": entry.method, "kind": kind, "tune": plain({name: list(values) for name, values in entry.tune.items()}),
            "schedule": "constant" if kind == "corpus" else None, "universal": universal, "families": families,
        }  # fmt: skip
    return {
        "metric": tuning.metric, "reuse": tuning.reuse, "max_clean_ppl": tuning.max_clean_ppl, "base_family": experiment.base_family,
        "selection_prompts": prompts.height, "continuations": tuning.continuations, "clean_texts": len(texts),
        "finetune_schedule": experiment.finetune.schedule, "bases": bases, "entries": told,
    }  # fmt: skip


def _dial(entry: MethodEntry, points: Sequence[Mapping[str, Any]]) -> Dial | None:
    """The method's dial, where it is among what is tuned."""
    method = method_of(entry)
    if method.strength is None or method.strength not in entry.tune:
        return None
    return Dial(method.strength, method.neutral, [float(point[method.strength]) for point in points])


def _weakness(points: Sequence[Mapping[str, Any]], dial: Dial | None) -> list[Any]:
    """What sorts points from the nearest to the base model: the dial, else the fewest steps and the lowest rate."""
    if dial is not None:
        return dial.weakness()
    return [(point.get("steps", 0), point.get("lr", 0.0), place) for place, point in enumerate(points)]
