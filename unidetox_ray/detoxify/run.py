"""The main path of `detoxify`: check → corpus → fit → fine-tune → evaluate → folder with a card.

Every piece is a stage of the package in a work folder beside `--out`, keyed by what it was made from: the same command
again goes on where it ended. The new folder appears whole, by one rename, at the end.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidetox_ray.artifacts import (
    MANIFEST,
    Manifest,
    RunFolder,
    code_version,
    finished,
    key_for,
    versions,
)
from unidetox_ray.detoxify.asked import Asked
from unidetox_ray.detoxify.corpora import LABEL, Source, corpus_of, entry_of, source_of
from unidetox_ray.detoxify.device import device_of
from unidetox_ray.detoxify.evaluation import measured, prepared
from unidetox_ray.detoxify.facts import base_facts, evaluation_facts, opening_of, passes, training_facts
from unidetox_ray.detoxify.fitting import Fitted, fitted
from unidetox_ray.detoxify.folder import appear
from unidetox_ray.detoxify.opened import Opened, opened
from unidetox_ray.errors import EXIT_USER_ERROR, ConfigError, OutOfMemory, StageError, UnidetoxError
from unidetox_ray.locking import only_writer
from unidetox_ray.settings import TrainingSection
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context, Display
from unidetox_ray.stages.models import Handle

if TYPE_CHECKING:
    from unidetox_ray.config import Experiment
    from unidetox_ray.detoxify.room import Device
    from unidetox_ray.stages.training import Job


def detoxify(asked: Asked, display: Display) -> dict[str, Any]:
    """Make the folder `asked.out`; returns what is in its detoxify.json. UnidetoxError subclasses say what went wrong."""
    from unidetox_ray.pipeline import storage_errors

    asked.check()
    experiment = asked.experiment()
    _without_reports()
    target = opened(asked.model, asked.revision)
    source = source_of(asked)
    base = target if source is not None or asked.distil_from is None else opened(asked.distil_from)
    # Data and scorer are tried before a folder of ours appears.
    with tempfile.TemporaryDirectory() as nowhere:
        trial = Context(experiment, RunFolder(Path(nowhere), "trial"), display)
        if source is None:
            trial.data("toxic", experiment.data.toxic)
        scorers = prepared(asked, trial, display.say)
    work = asked.out.absolute().parent / f".{asked.out.name}.work"
    folder = RunFolder(work, "detoxify", work / "cache")
    kept = True  # an interrupted command goes on from there
    try:
        with storage_errors(folder.root), only_writer(folder.root, f"the model {asked.out}"):
            context = Context(experiment, folder, display)
            context.take_data(trial)
            try:
                facts = _made(asked, context, target, source, base, scorers)
                kept = asked.keep_work
            except UnidetoxError as error:
                # Nothing goes on from a mistake, unless a finished model came before it.
                mistake = error.exit_code == EXIT_USER_ERROR
                kept = asked.keep_work or not mistake or any(folder.root.glob(f"models/*/{MANIFEST}"))
                raise
            finally:
                context.close()
                shutil.rmtree(folder.root / "ray", ignore_errors=True)
    finally:
        if not kept:
            shutil.rmtree(work, ignore_errors=True)
    return facts


def _without_reports() -> None:
    """transformers prints tables about what it loads; what is wrong with a model is said here, in one line."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _made(
    asked: Asked,
    context: Context,
    target: Opened,
    source: Source | None,
    base: Opened,
    scorers: dict[str, Handle] | None,
) -> dict[str, Any]:
    say = context.display.say
    described = base_facts(asked, target)  # before hours of work: it may ask the hub
    device = device_of(context)
    fit = settings_of(asked, context, target, source, base, device)
    say(fit.told(device))
    folder, manifest, corpus = corpus_of(context, source, base.handle)
    cell = Cell(LABEL, target.model_type, entry_of(source), asked.seed, target.handle)
    job = _job(asked, context, cell, fit, (folder, manifest))
    steps, texts = int(job.loop["steps"]), int(corpus["texts"])
    size = fit.section.batch_size
    if not fit.section.packing:
        say(f"{steps:,} steps of {size} texts: {passes(steps, size, texts):g} passes over {texts:,} texts")
    job, fit, trained = _trained_in_memory(asked, context, cell, job, fit, (folder, manifest))
    cell.model = {
        "path": job.folder, "revision": None, "key": job.key, "family": target.model_type, "name": asked.out.name
    }  # fmt: skip
    cell.settings, cell.training, cell.training_folder = job.settings, trained, job.folder
    rows = None if scorers is None else measured(context, cell, scorers)
    facts = {
        "base": described, "opening": opening_of(asked), "corpus": corpus,
        "fit": {"told": fit.told(device), "device": device.name, "device_bytes": device.memory,
                "estimated_peak_bytes": fit.choice.peak, "rows_at_once": fit.choice.rows, "pieces": fit.choice.pieces},
        "training": training_facts(context.experiment, job, trained),
        "evaluation": None if rows is None else evaluation_facts(asked, context.experiment, rows),
        "made_with": {"unidetox_ray": code_version()["version"], "commit": code_version()["git"],
                      **{name: versions()[name] for name in ("python", "torch", "transformers", "peft", "deepspeed")}},
        "smoke_run_limit": asked.limit,
    }  # fmt: skip
    appear(asked, Path(job.folder), facts)
    return facts


def settings_of(
    asked: Asked, context: Context, target: Opened, source: Source | None, base: Opened, device: Device
) -> Fitted:
    """Sets the context's experiment to what will run on this device; the fit of the fine-tuning itself."""
    given = asked.given
    chosen: dict[str, dict[str, Any]] = {}
    on_gpu = device.kind == "cuda" and device.bf16
    lengths = {"finetune": target.positions, "corpus": base.positions, "toxic": base.positions}
    for name, positions in lengths.items():
        section = getattr(context.experiment, name)
        if positions is not None and positions < section.max_length:
            if "max_length" in given[name]:
                raise ConfigError(
                    f"{name}.max_length = {section.max_length}: the model knows {positions} positions; name at most so many"
                )
            chosen[name] = {"max_length": positions}
            if name == "finetune" or source is None:
                context.display.say(
                    f"{name}: texts of at most {positions} tokens, as many as the model knows"
                )
    if target.positions is not None and target.positions < context.experiment.evaluate.clean_max_length:
        chosen["evaluate"] = {"clean_max_length": target.positions}
    for name in ("corpus", "evaluate"):
        if on_gpu:
            chosen.setdefault(name, {})["precision"] = "bf16"
    experiment = asked.experiment(chosen)
    if source is None:
        toxic = _fit_toxic(experiment, base, device, given["toxic"])
        chosen.setdefault("toxic", {}).update(_how(toxic))
    fit = fitted(experiment.finetune, target.model, device, name=asked.model, given=given["finetune"])
    chosen.setdefault("finetune", {}).update(_how(fit.section))
    context.experiment = asked.experiment(chosen)
    return fit


def _how(section: TrainingSection) -> dict[str, Any]:
    return {"precision": section.precision, "micro_batch": section.micro_batch}


def _fit_toxic(experiment: Experiment, base: Opened, device: Device, given: set[str]) -> TrainingSection:
    """The toxic copy is a full fine-tuning with settings of its own."""
    section = experiment.toxic
    same = experiment.finetune.model_copy(
        update={
            "adapter": "none", "batch_size": section.batch_size, "max_length": section.max_length,
            "precision": section.precision, "micro_batch": section.micro_batch,
        }
    )  # fmt: skip
    what = "toxic copy for --corpus fresh (name a smaller model with --distil-from): "
    return fitted(same, base.model, device, name=base.handle["name"], given=given, what=what).section


def _job(asked: Asked, context: Context, cell: Cell, fit: Fitted, corpus: tuple[Path, Manifest]) -> Job:
    from unidetox_ray.stages.finetune import cell_job

    job = cell_job(context, cell, context.experiment.finetune, corpus)
    if asked.keep_adapter:
        assert job.adapter is not None
        adapter = {**job.adapter, "keep": asked.base_name}
        key = key_for("finetune", {**job.config, "keep_adapter": True}, job.inputs)
        job = replace(job, adapter=adapter, key=key, folder=str(context.folder.model(job.name, key)))
    return job


def _trained_in_memory(
    asked: Asked, context: Context, cell: Cell, job: Job, fit: Fitted, corpus: tuple[Path, Manifest]
) -> tuple[Job, Fitted, Manifest]:
    """The training, as it was done in the end: where it runs out of memory, once more with half as many texts at once, unless
    the user has named how many. An estimate is too low where an architecture keeps more than the counted ones."""
    while True:
        try:
            return job, fit, _trained(context, job)
        except OutOfMemory:
            smaller = None if "micro_batch" in asked.given["finetune"] else fit.smaller()
            if smaller is None:
                raise
            context.display.say(
                f"out of memory with {fit.choice.rows} texts at once, more than was estimated: once more with {smaller.choice.rows}"
            )
            fit = smaller
            context.experiment = context.experiment.model_copy(update={"finetune": fit.section})
            job = _job(asked, context, cell, fit, corpus)


def _trained(context: Context, job: Job) -> Manifest:
    from unidetox_ray.stages.groups import run_groups

    done = finished(Path(job.folder), job.key)
    if done is None:
        outcome = run_groups(context, "finetune", "fine-tuning", {job.family: [job]})[job.name]
        if outcome.error is not None:
            raise outcome.kind(f"fine-tuning: {outcome.error}")
        done = finished(Path(job.folder), job.key)
    else:
        context.display.say("fine-tuning: finished by an earlier attempt")
    if done is None:
        raise StageError("fine-tuning: the training left no result")
    return done
