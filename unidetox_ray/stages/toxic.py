"""Stage `toxic`: fine-tuned copies of the base models that methods need, one Ray Train group per family.

toxic: trained on data.toxic (paper section 3, step 1). expert: the same recipe, the section `toxic:`, on the training part
of data.clean. A copy is keyed by model, data and recipe, and shared by every method that needs it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import polars as pl

from unidetox_ray.artifacts import finished, key_for, write_parquet
from unidetox_ray.errors import DataError
from unidetox_ray.hashing import digest, hashable
from unidetox_ray.methods.base import Need
from unidetox_ray.stages import held
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.groups import run_groups
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.needs import Needed
from unidetox_ray.stages.training import Job, loop_settings

#: The data role that a copy is trained on.
ROLES: dict[Need, str] = {"toxic": "toxic", "expert": "clean"}


def copy_job(context: Context, need: Need, family: str, model: Handle) -> Job:
    """The fine-tuning of one copy."""
    section = context.experiment.toxic
    role = ROLES[need]
    loaded = context.data(role, getattr(context.experiment.data, role))
    config = {**hashable(section), "family": family, "limit": context.experiment.limit}
    inputs = {"model": model["key"], role: loaded.sha256}
    key = key_for(need, config, inputs)
    name = f"{need}-{family}"
    folder = context.folder.model(name, key)
    texts = context.limited(loaded.table.filter(pl.col("split") == "train")).select("text_id", "text")
    if texts.height == 0:
        raise DataError(f"data.{role}: holds no text in split 'train', which the {need} model is trained on")
    path = context.folder.root / "stages" / f"{need}-texts-{key}.parquet"
    if finished(folder, key) is None:
        write_parquet(path, texts)
    steps = section.steps or section.epochs * math.ceil(texts.height / section.batch_size)
    settings = {
        "family": family, "method": need, "seed": section.seed, "steps": steps, "lr": section.lr, "batch_size": section.batch_size,
        "precision": section.precision, "schedule": section.schedule, "data_sha256": loaded.sha256,
    }  # fmt: skip
    if need == "toxic":
        settings["do_not_deploy"] = True
    return Job(
        name=name, key=key, folder=str(folder), family=family, model=model, texts=str(path),
        loop=asdict(loop_settings(section, steps=steps, seed=section.seed)), max_length=section.max_length, append_eos=section.append_eos,
        dropout=section.dropout, adapter=None, deepspeed=section.deepspeed.model_dump(), checkpoint_every=section.checkpoint_every,
        config=config, inputs=inputs, settings=settings,
    )  # fmt: skip


def toxic_job(context: Context, family: str, model: Handle) -> Job:
    """The toxic fine-tune of one family."""
    return copy_job(context, "toxic", family, model)


def handle_of_copy(job: Job) -> Handle:
    return {"path": job.folder, "revision": None, "key": job.key, "family": job.family, "name": job.name}


def run(context: Context, needed: Needed, bases: Mapping[str, Handle]) -> Copies:
    """Every copy that the experiment needs, families side by side. A copy that a corpus cannot do without is raised for;
    another that fails is an error that its cells carry."""
    started = time.perf_counter()
    jobs = {copy: copy_job(context, *copy, bases[copy[1]]) for copy in needed.copies}
    groups: dict[str, list[Job]] = {}
    for (_, family), job in jobs.items():
        if finished(Path(job.folder), job.key) is None:
            groups.setdefault(family, []).append(job)
    names = {need for need, _ in jobs}
    label = "toxic models" if names == {"toxic"} and len(jobs) > 1 else "toxic model"
    label = label if names == {"toxic"} else "toxic models and experts"
    outcomes = run_groups(context, "toxic", label, groups) if groups else {}
    copies = Copies()
    base = context.experiment.base_family
    for copy, job in jobs.items():
        manifest = finished(Path(job.folder), job.key)
        if manifest is not None:
            copies.models[copy], copies.manifests[copy] = handle_of_copy(job), manifest
            Path(job.texts).unlink(missing_ok=True)
            continue
        outcome = outcomes[job.name]
        error = outcome.kind(f"toxic: {job.name}: {outcome.error}")
        if copy[1] == base and copy[0] in needed.for_corpora:
            raise error
        copies.errors[copy] = error
    keys = sorted(job.key for job in jobs.values())
    context.record(
        "toxic", keys[0] if len(keys) == 1 else digest(keys)[:16], time.perf_counter() - started, reused=not groups,
        tokens=sum(manifest.extra["train_tokens"] for manifest in copies.manifests.values()),
        processes=context.experiment.cluster.workers_per_cell * max(1, len(groups)),
        devices=held.by_groups(context, len(groups)), partial=sum(map(len, groups.values())) < len(jobs),
    )  # fmt: skip
    return copies
