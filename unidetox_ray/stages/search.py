"""Stage `search`: Ray Tune over steps × lr on the base family's validation prompts (paper section 3).

A Tune trial trains in its own process. With several workers a cell it is a light driver that builds its own Ray Train run, named by the
trial's hash: a random name would restart a resumed trial at step 0. `schedule: linear` trains once per (steps, lr), because the decay
depends on the step count; `constant` trains once per lr and measures at every step count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import (
    Manifest,
    finished,
    key_for,
    private_folder,
    write_json,
    write_manifest,
    write_parquet,
)
from unidetox_ray.errors import StageError, UnidetoxError
from unidetox_ray.hashing import hashable
from unidetox_ray.settings import (
    ClusterSection,
    EvaluateSection,
    FinetuneSection,
    SearchSection,
    TuningSection,
)
from unidetox_ray.stages import held
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.deaths import died, tried_again
from unidetox_ray.stages.finetune import cell_job, training_of
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.scorers import scorer_specs
from unidetox_ray.stages.training import Job, failure, group_trainer, join_alone, run_in_memory
from unidetox_ray.stages.watch import watched


def run(
    context: Context, cell: Cell, corpus: tuple[Path, Manifest], scorers: dict[str, Handle]
) -> tuple[FinetuneSection, Manifest]:
    """The fine-tuning settings that the search chose, and the stage's manifest."""
    started = time.perf_counter()
    experiment = context.experiment
    search = experiment.search
    assert search is not None
    evaluate, prompts = selection(context, search)
    if prompts.height == 0:
        raise StageError(
            "search: data.prompts has no validation row; the choice needs prompts that the test does not use"
        )
    spec = scorer_specs(experiment, scorers)[0]
    config = {
        "search": search.model_dump(mode="json", exclude={"max_concurrent"}), "finetune": hashable(experiment.finetune),
        "evaluate": evaluate.model_dump(mode="json"), "scorer": spec["model"]["key"] if "model" in spec else spec, "limit": experiment.limit,
        "family": cell.family, "seed": cell.seed,
    }  # fmt: skip
    inputs = {"model": cell.base["key"], "corpus": corpus[1].key, "prompts": context.prompts_sha()}
    key = key_for("search", config, inputs)
    folder = private_folder(context.folder.stage("search", key))
    manifest = finished(folder, key)
    reused = manifest is not None
    tokens, lanes = 0.0, 0
    if manifest is None:
        probe = probe_in(folder, context, evaluate, prompts, spec)
        jobs = trial_jobs(context, cell, corpus, search, probe, folder, partial(training_of, cell))
        lanes = len(jobs)
        errors = run_trials(context, jobs, search, f"search-{folder.name}")
        done = [finished(Path(job.folder), job.key) for job in jobs]
        tokens = float(sum(each.extra["train_tokens"] for each in done if each is not None))
        trials = _trials(jobs, {name: text for name, (text, _) in errors.items()})
        kinds = {kind for _, kind in errors.values()}
        chosen, why = choose(trials, search, kind=kinds.pop() if len(kinds) == 1 else StageError)
        section = experiment.finetune.model_copy(update=chosen)
        values = {
            "base_family": cell.family, "metric": search.metric, "schedule": search.schedule, "finetune_schedule": experiment.finetune.schedule,
            "selection_prompts": prompts.height, "trials": trials, "chosen": chosen, "reason": why, "method": search.method,
            # What every cell is then trained with, whole: with another schedule than the search's where the experiment says so.
            "finetune": hashable(section),
        }  # fmt: skip
        write_json(folder / "search.json", values)
        failed = sum(trial["status"] != "ok" for trial in trials)
        manifest = write_manifest(
            folder, stage="search", key=key, seconds=time.perf_counter() - started, config=config, inputs=inputs,
            counts={"expected": len(trials), "ok": len(trials) - failed, "failed": failed}, extra=values,
        )  # fmt: skip
    context.record(
        "search", key, time.perf_counter() - started, reused=reused, tokens=tokens,
        devices=held.by_trials(context, lanes, search.max_concurrent),
    )  # fmt: skip
    chosen = manifest.extra["chosen"]
    return experiment.finetune.model_copy(update={"steps": chosen["steps"], "lr": chosen["lr"]}), manifest


def selection(
    context: Context, search: SearchSection | TuningSection
) -> tuple[EvaluateSection, pl.DataFrame]:
    """How settings are compared, and on which prompts: validation ones, which the test does not use."""
    evaluate = context.experiment.evaluate.model_copy(
        update={"continuations": search.continuations, "runs": 1, "split": "validation"}
    )
    prompts = context.prompts("validation")
    if search.prompts_per_domain is not None:
        prompts = prompts.group_by("domain", maintain_order=True).head(search.prompts_per_domain)
    return evaluate, prompts


def probe_in(
    folder: Path, context: Context, evaluate: EvaluateSection, prompts: pl.DataFrame, spec: dict[str, Any]
) -> dict[str, Any]:
    """What `stages.probe.measure` is told, its prompts and clean texts written into `folder`. spec: the scorer."""
    experiment = context.experiment
    write_parquet(folder / "prompts.parquet", prompts)
    clean = None
    if experiment.data.clean is not None:
        clean = str(folder / "clean.parquet")
        table = context.data("clean", experiment.data.clean).table
        write_parquet(Path(clean), context.limited(table.filter(pl.col("split") == "test")).head(200))
    return {
        "evaluate": evaluate.model_dump(mode="json"), "prompts": str(folder / "prompts.parquet"), "clean": clean, "scorer": spec,
        "decode_rows": experiment.cluster.decode_rows, "score_tokens": experiment.cluster.score_tokens,
    }  # fmt: skip


def trial_jobs(
    context: Context,
    cell: Cell,
    corpus: tuple[Path, Manifest],
    search: SearchSection,
    probe: dict[str, Any],
    folder: Path,
    changed: Callable[[FinetuneSection], FinetuneSection] = lambda section: section,
) -> list[Job]:
    """One training per lr (constant) or per (steps, lr) (linear); each says at which steps it is measured.

    changed: what else is done to each training's settings.
    """
    plans = (
        [(max(search.steps), lr, list(search.steps)) for lr in search.lr]
        if search.schedule == "constant"
        else [(steps, lr, [steps]) for lr in search.lr for steps in search.steps]
    )
    jobs = []
    for steps, lr, measured in plans:
        section = context.experiment.finetune.model_copy(
            update={"steps": steps, "lr": lr, "schedule": search.schedule}
        )
        job = cell_job(context, cell, changed(section), corpus)
        settings = {**probe, "steps": measured}
        config = {**job.config, "probe": {"steps": measured, "evaluate": probe["evaluate"]}}
        key = key_for("trial", config, job.inputs | {"search": folder.name})
        name = f"lr={lr:g},steps={'-'.join(str(step) for step in measured)}"
        jobs.append(
            replace(
                job, name=name, key=key, folder=str(folder / "trials" / name), probe=settings, config=config
            )
        )
    return jobs


def trial_driver(config: dict[str, Any]) -> None:
    """The Tune function: one job. Alone it is trained in the trial's own process; several workers are a Ray Train run of their
    own, whose metrics reach Tune through Ray's callback."""
    job, cluster = Job(**json.loads(config["job"])), ClusterSection(**config["cluster"])
    if cluster.workers_per_cell == 1:
        from ray import tune

        from unidetox_ray.stages.cluster import prepare_process

        device = prepare_process(cluster.threads)
        join_alone(device)
        run_in_memory(job, device, 0, 1, tune.report)
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    trainer = group_trainer(
        f"trial-{job.key}", [job], cluster, Path(config["storage"]), [TuneReportCallback()]
    )
    trainer.fit()


def run_trials(
    context: Context, jobs: Sequence[Job], search: SearchSection, name: str
) -> dict[str, tuple[str, type[UnidetoxError]]]:
    """Run the trials that are not finished as the Tune run `name`; returns the errors and their kinds by job name.

    A trial whose process died is tried again, from its last checkpoint, `cluster.max_restarts` times: that a machine went
    away must not decide which setting is chosen.
    """
    waiting = [job for job in jobs if finished(Path(job.folder), job.key) is None]
    errors = tried_again(
        waiting,
        context.experiment.cluster.max_restarts + 1,
        lambda job: job.name,
        lambda jobs, attempt: _tune(context, jobs, search, f"{name}-{attempt}"),
        died,
    )
    return {job: failure(error) for job, error in errors.items()}


def _tune(
    context: Context, waiting: Sequence[Job], search: SearchSection, name: str
) -> dict[str, BaseException]:
    """One Tune run; what brought trials down, by job name."""
    from ray import tune

    from unidetox_ray.stages.cluster import concurrent_groups, has_gpus

    context.connect()
    cluster = context.experiment.cluster
    # The driver of a Ray Train run only waits and must leave its workers every CPU and GPU; Tune wants it to hold something.
    resources = {"memory": 1.0}
    if cluster.workers_per_cell == 1:
        resources = {"gpu": 1.0} if has_gpus() else {"cpu": 1.0}
    at_once = search.max_concurrent or concurrent_groups(cluster, len(waiting))
    by_text = {json.dumps(asdict(job)): job.name for job in waiting}
    space = {
        "job": tune.grid_search(list(by_text)),
        "cluster": cluster.model_dump(mode="json"),
        "storage": str(context.folder.root / "ray"),
    }
    tuner = tune.Tuner(
        tune.with_resources(trial_driver, resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once, metric=search.metric, mode="min", reuse_actors=True
        ),
        run_config=tune.RunConfig(name=name, storage_path=str(context.folder.root / "ray"), verbose=0),
    )
    with watched(context, "search", waiting):
        results = tuner.fit()
    return {
        by_text[str((result.config or {})["job"])]: result.error
        for result in (results[index] for index in range(len(results)))
        if result.error is not None
    }


def _trials(jobs: Sequence[Job], errors: dict[str, str]) -> list[dict[str, Any]]:
    """One row per (steps, lr): what was measured, or why not."""
    rows = []
    for job in jobs:
        manifest = finished(Path(job.folder), job.key)
        assert job.probe is not None
        for step in job.probe["steps"]:
            row: dict[str, Any] = {
                "trial": f"lr={job.loop['lr']:g},steps={step}",
                "steps": step,
                "lr": job.loop["lr"],
                "key": job.key,
            }
            measured = next(
                (m for m in (manifest.extra["measured"] if manifest else []) if m["step"] == step), None
            )
            if manifest is None or measured is None:
                rows.append(
                    {
                        **row,
                        "status": "failed",
                        "error": errors.get(job.name, "no measurement was left"),
                        "seconds": None,
                    }
                )
            else:
                values = {name: value for name, value in measured.items() if name not in {"step", "failed"}}
                rows.append({**row, **values, "status": "ok", "error": None, "seconds": manifest.seconds})
    return rows


def choose(
    trials: Sequence[dict[str, Any]], search: SearchSection, *, kind: type[UnidetoxError] = StageError
) -> tuple[dict[str, Any], str]:
    """The lowest metric; among equals the fewest steps, then the lower rate: the least change that does as well.

    kind: what to raise when every trial failed.
    """
    usable = [trial for trial in trials if trial["status"] == "ok" and trial.get(search.metric) is not None]
    if not usable:
        raise kind(f"search: all {len(trials)} trials failed; first error: {trials[0]['error']}")
    best = min(usable, key=lambda trial: (round(trial[search.metric], 12), trial["steps"], trial["lr"]))
    equal = sum(abs(trial[search.metric] - best[search.metric]) < 1e-12 for trial in usable)
    tie = (
        f"; {equal} trials share it, the one with the fewest steps and lowest rate was taken"
        if equal > 1
        else ""
    )
    text = f"lowest validation {search.metric} = {best[search.metric]:.4f} of {len(usable)} measured settings{tie}"
    return {"steps": best["steps"], "lr": best["lr"]}, text
