"""The main path of `detoxify`: check → corpus → fit → fine-tune → evaluate → folder with a card.

Every piece is a stage of the package in a work folder beside `--out`, keyed by what it was made from: the same command
again goes on where it ended. The new folder appears whole, by one rename, at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
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
    write_json,
    write_text,
)
from unidetox_ray.detoxify.asked import Asked
from unidetox_ray.detoxify.card import card
from unidetox_ray.detoxify.corpora import LABEL, Source, corpus_of, entry_of, source_of
from unidetox_ray.detoxify.device import device_of
from unidetox_ray.detoxify.evaluation import measured, prepared
from unidetox_ray.detoxify.fitting import Fitted, fitted
from unidetox_ray.detoxify.licences import licence_files, licence_of
from unidetox_ray.detoxify.shape import positions_of, skeleton
from unidetox_ray.errors import StageError
from unidetox_ray.families.bottleneck import moved
from unidetox_ray.locking import only_writer
from unidetox_ray.settings import ModelRef, TrainingSection
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context, Display
from unidetox_ray.stages.models import Handle, handle_of

if TYPE_CHECKING:
    from unidetox_ray.config import Experiment
    from unidetox_ray.detoxify.room import Device
    from unidetox_ray.stages.training import Job

#: Of the training, not of the model.
_LEFT = {"train_log.parquet", "settings.json", "README.md", MANIFEST, "adapter"}
FACTS = "detoxify.json"


@dataclass(frozen=True)
class Opened:
    """A model as far as it can be known without its weights."""

    handle: Handle
    model: Any
    """Without numbers (`shape.skeleton`)."""
    model_type: str
    positions: int | None
    hub_id: str | None


def opened(source: str, revision: str | None = None) -> Opened:
    """Checks a model before anything is written. ModelError: missing, gated, or none that could be detoxified."""
    from unidetox_ray.families.loading import load_config, load_tokenizer, special_ids
    from unidetox_ray.families.supported import refuse_unsupported

    handle = handle_of(ModelRef(source=source, revision=revision), "model")
    config = load_config(handle["path"], revision)
    refuse_unsupported(config, source)
    special_ids(load_tokenizer(handle["path"], revision), config)
    kind = str(config.model_type)
    hub_id = None if Path(source).expanduser().is_dir() else source
    return Opened({**handle, "family": kind}, skeleton(config, source), kind, positions_of(config), hub_id)


def detoxify(asked: Asked, display: Display) -> dict[str, Any]:
    """Make the folder `asked.out`; returns what is in its detoxify.json. UnidetoxError subclasses say what went wrong."""
    from unidetox_ray.pipeline import storage_errors

    asked.check()
    experiment = asked.experiment()
    _without_reports()
    target = opened(asked.model, asked.revision)
    source = source_of(asked)
    base = target if source is not None or asked.distil_from is None else opened(asked.distil_from)
    with (
        tempfile.TemporaryDirectory() as nowhere
    ):  # data and scorer are tried before a folder of ours appears
        trial = Context(experiment, RunFolder(Path(nowhere), "trial"), display)
        if source is None:
            trial.data("toxic", experiment.data.toxic)
        scorers = prepared(asked, trial, display.say)
    work = asked.out.absolute().parent / f".{asked.out.name}.work"
    folder = RunFolder(work, "detoxify", work / "cache")
    with storage_errors(folder.root), only_writer(folder.root, f"the model {asked.out}"):
        context = Context(experiment, folder, display)
        context.take_data(trial)
        try:
            facts = _made(asked, context, target, source, base, scorers)
        finally:
            context.close()
            shutil.rmtree(folder.root / "ray", ignore_errors=True)
    if not asked.keep_work:
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
    device = device_of(context)
    fit = _settings(asked, context, target, source, base, device)
    say(fit.told(device))
    folder, manifest, corpus = corpus_of(context, source, base.handle)
    cell = Cell(LABEL, target.model_type, entry_of(source), asked.seed, target.handle)
    job = _job(asked, context, cell, fit, (folder, manifest))
    trained = _trained(context, job)
    cell.model = {
        "path": job.folder, "revision": None, "key": job.key, "family": target.model_type, "name": asked.out.name
    }  # fmt: skip
    cell.settings, cell.training, cell.training_folder = job.settings, trained, job.folder
    rows = None if scorers is None else measured(context, cell, scorers)
    facts = {
        "base": _base_facts(asked, target), "opening": _opening(asked), "corpus": corpus,
        "fit": {"told": fit.told(device), "device": device.name, "device_bytes": device.memory,
                "estimated_peak_bytes": fit.choice.peak, "rows_at_once": fit.choice.rows, "pieces": fit.choice.pieces},
        "training": _training_facts(context.experiment, job, trained),
        "evaluation": None if rows is None else _evaluation_facts(asked, context.experiment, rows),
        "made_with": {"unidetox_ray": code_version()["version"], "commit": code_version()["git"],
                      **{name: versions()[name] for name in ("python", "torch", "transformers", "peft", "deepspeed")}},
        "smoke_run_limit": asked.limit,
    }  # fmt: skip
    _appear(asked, Path(job.folder), facts)
    return facts


def _settings(
    asked: Asked, context: Context, target: Opened, source: Source | None, base: Opened, device: Device
) -> Fitted:
    """Sets the context's experiment to what will run on this device; the fit of the fine-tuning itself."""
    given, chosen = asked.given, {}
    on_gpu = device.kind == "cuda" and device.bf16
    lengths = {"finetune": target.positions, "corpus": base.positions, "toxic": base.positions}
    for name, positions in lengths.items():
        section = getattr(context.experiment, name)
        if positions is not None and positions < section.max_length:
            chosen[name] = {"max_length": positions}
            if "max_length" not in given[name] and (name == "finetune" or source is None):
                context.display.say(
                    f"{name}: texts of at most {positions} tokens, as many as the model knows"
                )
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


def _opening(asked: Asked) -> str:
    if asked.adapter == "bottleneck":
        return "bottleneck"
    return "adapter" if asked.keep_adapter else "none"


def _base_facts(asked: Asked, target: Opened) -> dict[str, Any]:
    folder = Path(asked.model).expanduser()
    beside = [path.name for path in licence_files(folder)] if folder.is_dir() else []
    return {
        "name": target.handle["name"], "hub_id": target.hub_id, "revision": asked.revision, "model_type": target.model_type,
        "key": target.handle["key"], "licence": licence_of(asked.model, asked.revision), "licence_files": beside,
    }  # fmt: skip


def _training_facts(experiment: Experiment, job: Job, manifest: Manifest) -> dict[str, Any]:
    section, extra = experiment.finetune, manifest.extra
    adapter = None
    if job.adapter is not None:
        adapter = {name: value for name, value in job.adapter.items() if name != "keep"}
    return {
        "adapter": adapter or "none: all weights", "adapted_layers": extra.get("adapter_targets"), "steps": extra["steps"],
        "batch_size": section.batch_size, "learning_rate": section.lr, "schedule": section.schedule,
        "precision": section.precision, "max_length": section.max_length, "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm, "dropout": section.dropout, "packing": section.packing, "seed": job.settings["seed"],
        **{f"texts_{name}" if name != "texts" else name: count for name, count in extra["texts"].items()}, "trained_parameters": extra["trainable_parameters"], "train_tokens": extra["train_tokens"],
        "train_seconds": extra["train_seconds"], "final_loss": extra["final_loss"], "device": extra["device"],
    }  # fmt: skip


def _evaluation_facts(asked: Asked, experiment: Experiment, rows: list[dict[str, Any]]) -> dict[str, Any]:
    before, after = rows
    evaluate = experiment.evaluate
    metrics = {
        name: {"before": before["metrics"][name], "after": entry}
        for name, entry in after["metrics"].items()
        if name in before["metrics"]
    }
    scorer = evaluate.scorers[0]
    return {
        "metrics": metrics, "scorer": scorer.source if scorer.kind == "classifier" else f"word list {Path(scorer.source).name}",
        "scorer_revision": scorer.revision, "prompts": Path(asked.prompts or "toxigen").name,
        "clean": None if asked.clean is None else Path(asked.clean).name,
        **{name: getattr(evaluate, name) for name in ("continuations", "max_new_tokens", "top_p", "top_k", "temperature",
                                                      "runs", "seed", "threshold", "bootstrap")},
    }  # fmt: skip


def _appear(asked: Asked, made: Path, facts: dict[str, Any]) -> None:
    """The folder, whole, at `asked.out`; nothing is there while it is put together."""
    out = asked.out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        names = {path.name for path in made.iterdir() if not path.name.startswith(".")} - _LEFT
        if asked.keep_adapter:
            for path in (made / "adapter").iterdir():
                if path.name != "README.md":
                    shutil.copyfile(path, new / path.name)
            names = {
                name for name in names if "token" in name or Path(name).suffix in {".jinja", ".txt", ".model"}
            }
        for name in sorted(names):
            (shutil.copytree if (made / name).is_dir() else shutil.copyfile)(made / name, new / name)
        base = Path(asked.model).expanduser()
        for path in licence_files(base) if base.is_dir() else []:
            shutil.copyfile(path, new / path.name)
        if asked.adapter == "bottleneck":
            moved(new, out)
        write_json(new / FACTS, facts)
        write_text(new / "README.md", card(facts))
        if out.is_dir():
            out.rmdir()  # empty: it was looked at in the beginning, and a filled one stays and is an error here
        os.replace(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
