"""Stage `finetune`: every corpus cell trained on its corpus, families side by side as independent Ray Train drivers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import Manifest, finished, key_for
from unidetox_ray.errors import ConfigError
from unidetox_ray.experiment import checked
from unidetox_ray.hashing import digest, hashable
from unidetox_ray.methods.base import CorpusMethod
from unidetox_ray.settings import FinetuneSection
from unidetox_ray.stages import held
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.groups import run_groups
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.needs import method_of
from unidetox_ray.stages.training import Job, loop_settings


def cell_job(context: Context, cell: Cell, section: FinetuneSection, corpus: tuple[Path, Manifest]) -> Job:
    """The training of one cell on one corpus."""
    folder, manifest = corpus
    config = {**hashable(section), "family": cell.family, "seed": cell.seed}
    inputs = {"model": cell.base["key"], "corpus": manifest.key, "corpus_sha256": manifest.extra["sha256"]}
    key = key_for("finetune", config, inputs)
    steps = steps_of(section, folder / "corpus.parquet", cell.name)
    settings = {
        "family": cell.family, "method": cell.method.label, "seed": cell.seed, "steps": steps, "lr": section.lr,
        "batch_size": section.batch_size, "precision": section.precision, "schedule": section.schedule, "adapter": section.adapter,
        "corpus_sha256": manifest.extra["sha256"], "corpus_key": manifest.key, "base_model": cell.base["name"],
    }  # fmt: skip
    return Job(
        name=cell.name, key=key, folder=str(context.folder.model(cell.name, key)), family=cell.family, model=cell.base,
        texts=str(folder / "corpus.parquet"), loop=asdict(loop_settings(section, steps=steps, seed=cell.seed)),
        max_length=section.max_length, append_eos=section.append_eos, dropout=section.dropout,
        adapter=adapter_of(section), deepspeed=section.deepspeed.model_dump(),
        checkpoint_every=section.checkpoint_every, config=config, inputs=inputs, settings=settings,
    )  # fmt: skip


def steps_of(section: FinetuneSection, corpus: Path, name: str) -> int:
    """Steps of the training: as many as `epochs` passes take, else `steps`."""
    if section.epochs is None:
        return section.steps
    if section.packing:  # a method may set epochs where the experiment packs
        raise ConfigError(
            f"{name}: epochs are counted in texts, and packing: true trains on rows of several; name steps"
        )
    texts = int(pl.scan_parquet(corpus).select(pl.len()).collect().item())
    return section.epochs * math.ceil(texts / section.batch_size)


def adapter_of(section: FinetuneSection) -> dict[str, Any] | None:
    """The adapters of a training as its job has them."""
    if section.adapter == "none":
        return None
    return {"kind": section.adapter, **getattr(section, section.adapter).model_dump()}


def training_of(cell: Cell, section: FinetuneSection) -> FinetuneSection:
    """The training settings of one cell: the experiment's with what was tuned, as its method changes them."""
    method = method_of(cell.method)
    passes = {"epochs": None} if "steps" in cell.training_values else {}  # epochs would take the steps' place
    section = section.model_copy(update={**passes, **cell.training_values})
    return method.training(checked(cell.method), section) if isinstance(method, CorpusMethod) else section


def model_of(job: Job, family: str) -> Handle:
    return {"path": job.folder, "revision": None, "key": job.key, "family": family, "name": job.name}


def run(
    context: Context,
    cells: Sequence[Cell],
    corpora: dict[str, tuple[Path, Manifest]],
    section: FinetuneSection,
) -> None:
    """Gives every corpus cell its model, or its error."""
    started = time.perf_counter()
    jobs: dict[str, Job] = {}
    for cell in cells:
        if cell.kind == "corpus":
            own = training_of(cell, section)
            jobs[cell.name] = cell_job(context, cell, own, corpora[cell.entry])
            cell.settings = jobs[cell.name].settings
    groups: dict[str, list[Job]] = {}
    for cell in cells:
        if cell.name in jobs and finished(Path(jobs[cell.name].folder), jobs[cell.name].key) is None:
            groups.setdefault(cell.family, []).append(jobs[cell.name])
    outcomes = run_groups(context, "finetune", "fine-tuning", groups) if groups else {}
    for cell in cells:
        if cell.name not in jobs:
            continue
        job = jobs[cell.name]
        cell.training = finished(Path(job.folder), job.key)
        if cell.training is None:
            outcome = outcomes.get(cell.name)
            cell.error = (outcome.error if outcome else None) or "training left no result"
        else:
            cell.model = model_of(job, cell.family)
            cell.training_folder = job.folder
    key = digest(sorted(job.key for job in jobs.values()))[:16]
    tokens = sum(cell.training.extra["train_tokens"] for cell in cells if cell.training is not None)
    context.record(
        "finetune", key, time.perf_counter() - started, reused=not groups, tokens=tokens,
        processes=context.experiment.cluster.workers_per_cell * max(1, len(groups)),
        devices=held.by_groups(context, len(groups)), partial=sum(map(len, groups.values())) < len(jobs),
    )  # fmt: skip
