"""Stage `toxic`: the base family's model made toxic, one Ray Train run (paper section 3, step 1)."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import Manifest, finished, key_for, write_parquet
from unidetox_ray.config import hashable
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.training import Job, loop_settings, run_group


def toxic_job(context: Context, family: str, model: Handle) -> Job:
    """The toxic fine-tune of one family: keyed by model, data and recipe, shared by every method that needs it."""
    section = context.experiment.toxic
    loaded = context.data("toxic", context.experiment.data.toxic)
    config = {**hashable(section), "family": family, "limit": context.experiment.limit}
    inputs = {"model": model["key"], "toxic": loaded.sha256}
    key = key_for("toxic", config, inputs)
    folder = context.folder.model(f"toxic-{family}", key)
    texts = context.limited(loaded.table.filter(pl.col("split") == "train")).select("text_id", "text")
    path = context.folder.root / "stages" / f"toxic-texts-{key}.parquet"
    if finished(folder, key) is None:
        write_parquet(path, texts)
    steps = section.steps or section.epochs * math.ceil(texts.height / section.batch_size)
    return Job(
        name=f"toxic-{family}", key=key, folder=str(folder), family=family, model=model, texts=str(path),
        loop=asdict(loop_settings(section, steps=steps, seed=section.seed)), max_length=section.max_length, append_eos=section.append_eos,
        dropout=section.dropout, adapter=None, deepspeed=section.deepspeed.model_dump(), checkpoint_every=section.checkpoint_every,
        config=config, inputs=inputs,
        settings={"family": family, "method": "toxic", "seed": section.seed, "steps": steps, "lr": section.lr, "batch_size": section.batch_size,
                  "precision": section.precision, "schedule": section.schedule, "do_not_deploy": True, "data_sha256": loaded.sha256},
    )  # fmt: skip


def run(context: Context, model: Handle) -> tuple[Handle, Manifest]:
    """The toxic model's handle and manifest."""
    from unidetox_ray.stages.watch import watched

    started = time.perf_counter()
    family = context.experiment.base_family
    job = toxic_job(context, family, model)
    manifest = finished(Path(job.folder), job.key)
    reused = manifest is not None
    if manifest is None:
        context.connect()
        with watched(context, "toxic model", [job]):
            outcome = run_group(
                f"toxic-{job.key}", [job], context.experiment.cluster, context.folder.root / "ray"
            )[0]
        if outcome.error is not None:
            raise outcome.kind(f"toxic: {outcome.error}")
        manifest = outcome.manifest
        Path(job.texts).unlink(missing_ok=True)
    context.record(
        "toxic",
        job.key,
        time.perf_counter() - started,
        reused=reused,
        tokens=manifest.extra["train_tokens"] if manifest else 0,
        processes=context.experiment.cluster.workers_per_cell,
    )
    handle: dict[str, Any] = {
        "path": job.folder,
        "revision": None,
        "key": job.key,
        "family": family,
        "name": job.name,
    }
    assert manifest is not None
    return handle, manifest
