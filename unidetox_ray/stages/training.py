"""Fine-tuning on Ray Train with DeepSpeed: the jobs, the worker that runs them, and the driver that watches.

One training group (a set of Ray Train workers) takes a list of jobs one after another, so that start-up and imports are paid
once per family and not once per cell. A finished job is a folder whose manifest was written last; a job that fails is recorded and
the group starts again behind it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import (
    finished,
    private_folder,
    read_json,
    write_json,
    write_manifest,
    write_parquet,
    write_text,
)
from unidetox_ray.cards import model_card
from unidetox_ray.core.batching import out_of_memory, reason
from unidetox_ray.core.loop import LoopSettings
from unidetox_ray.errors import ConfigError, OutOfMemory, StageError, UnidetoxError, kind_named
from unidetox_ray.settings import ClusterSection, DeepSpeedSection, FinetuneSection, ToxicSection
from unidetox_ray.stages.deaths import died
from unidetox_ray.stages.saving import save_model
from unidetox_ray.stages.stepper import DeepSpeedStepper

#: What a probed job has measured so far; in its manifest once it is done.
MEASURED = "measured.json"


@dataclass(frozen=True)
class Job:
    """One fine-tuning, as plain values: it travels to the worker as JSON."""

    name: str
    key: str
    folder: str
    family: str
    model: dict[str, Any]
    texts: str
    """Parquet with `text` and, optionally, `ended`: whether the text really ended (and so gets an end token)."""
    loop: dict[str, Any]
    max_length: int
    append_eos: bool
    dropout: float | None
    adapter: dict[str, Any] | None
    """`kind` (lora or bottleneck) and its settings; null: all weights are trained."""
    deepspeed: dict[str, Any]
    checkpoint_every: int
    config: dict[str, Any]
    inputs: dict[str, str]
    settings: dict[str, Any]
    """Written as settings.json beside the weights."""
    probe: dict[str, Any] | None = None
    """Steps to measure at, and how (stages.probe); a probed job keeps no weights."""


@dataclass
class Outcome:
    """What became of a job."""

    name: str
    error: str | None = None
    kind: type[UnidetoxError] = StageError
    """What to raise for `error`: a user's mistake stays one."""
    manifest: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


def loop_settings(section: ToxicSection | FinetuneSection, *, steps: int, seed: int) -> LoopSettings:
    return LoopSettings(
        steps=steps,
        lr=section.lr,
        batch_size=section.batch_size,
        seed=seed,
        schedule=section.schedule,
        precision=section.precision,
        max_grad_norm=section.max_grad_norm,
        weight_decay=section.weight_decay,
        loss_on_padding=section.loss_on_padding,
        pad_to=section.pad_to,
        compile=section.compile,
        pack_to=section.max_length if section.packing else 0,
        micro_batch=section.micro_batch,
    )


def rows_of(job: Job, tokenizer: Any, end_id: int | None) -> tuple[list[list[int]], dict[str, int]]:
    """Token rows of a job's texts, cut to max_length, and how many were cut, too short, or ended."""
    from unidetox_ray.families.loading import encode

    table = pl.read_parquet(job.texts)
    ended = table["ended"].to_list() if "ended" in table.columns else [True] * table.height
    rows, counts = [], {"texts": table.height, "cut": 0, "too_short": 0, "ended": 0}
    for text, has_ended in zip(table["text"].to_list(), ended, strict=True):
        ids = encode(tokenizer, text, bos="auto")
        if job.append_eos and has_ended and end_id is not None:
            ids = [*ids, end_id]
            counts["ended"] += len(ids) <= job.max_length
        counts["cut"] += len(ids) > job.max_length
        ids = ids[: job.max_length]
        if len(ids) < 2:
            counts["too_short"] += 1  # nothing can be predicted from one token
        else:
            rows.append(ids)
    return rows, counts


def train_worker(config: dict[str, Any]) -> None:
    """The Ray Train worker function: every job of the group, in order, skipping finished ones."""
    import ray.train

    from unidetox_ray.stages.cluster import prepare_process

    device = prepare_process(config["threads"])
    context = ray.train.get_context()
    for values in config["jobs"]:
        job = Job(**values)
        if finished(Path(job.folder), job.key) is None:
            run_in_memory(job, device, context.get_world_rank(), context.get_world_size(), ray.train.report)
    if not any(job["probe"] for job in config["jobs"]):  # Tune refuses a report without the searched metric
        ray.train.report({"finished": len(config["jobs"])})


def run_in_memory(job: Job, device: str, rank: int, world: int, report: Any) -> None:
    """`run_job`, whose lack of memory is an OutOfMemory that says what to name."""
    try:
        run_job(job, device, rank, world, report)
    except Exception as error:
        if out_of_memory(error):
            raise OutOfMemory(_too_much(job, device, error)) from error
        raise


def _too_much(job: Job, device: str, error: BaseException) -> str:
    rows = int(job.loop["micro_batch"] or job.loop["batch_size"])
    section = "toxic" if job.name.startswith(("toxic-", "expert-")) else "finetune"
    return (
        f"{job.name}: out of memory on {device} with {rows} texts of at most {job.max_length} tokens at once ({reason(error)}); a smaller "
        f"{section}.micro_batch changes no result, {section}.precision and max_length do; `unidetox plan` says what fits"
    )


def join_alone(device: str) -> None:
    """Make this process a group of one, as Ray Train makes its workers one: DeepSpeed asks torch for it."""
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
        )


def run_job(job: Job, device: str, rank: int, world: int, report: Any) -> None:
    """Train one job and, on rank 0, leave its finished folder."""
    import torch

    from unidetox_ray.core.flops import Pace, parameters_of
    from unidetox_ray.core.loop import Log, train
    from unidetox_ray.families.loading import load_model, load_tokenizer, special_ids
    from unidetox_ray.families.supported import refuse_not_causal, refuse_too_long
    from unidetox_ray.stages import checkpoints

    started = time.perf_counter()
    folder = private_folder(Path(job.folder))
    settings = LoopSettings(**job.loop)
    torch.manual_seed(settings.seed + rank)
    tokenizer = load_tokenizer(job.model["path"], revision=job.model.get("revision"))
    model = load_model(job.model["path"], dtype="float32", device="cpu", revision=job.model.get("revision"))
    ids = special_ids(tokenizer, model.config)
    if job.dropout is not None:
        set_dropout(model, job.dropout)
    refuse_adapted(model, job)
    refuse_not_causal(model, job.model["name"])
    if job.adapter is not None:
        model = with_adapter(model, job.adapter, settings.seed)
    targets = adapted_layers(model)
    rows, counts = rows_of(job, tokenizer, ids.eos)
    if not rows:
        raise StageError(f"{job.name}: no text of {job.texts} holds two tokens; nothing to train on")
    refuse_too_long(unwrapped(model), max(map(len, rows)), job.model["name"])
    if settings.pack_to:
        check_packing(model, job, settings.pack_to)
    weights = parameters_of(model)
    stepper = DeepSpeedStepper(model, settings, DeepSpeedSection(**job.deepspeed), world)
    pace = Pace(stepper.forward.device)
    start, log = checkpoints.restore(stepper.engine, folder, job.key, Log())
    seconds_before = float(sum(checkpoints.seconds(folder, job.key)))
    marks: list[tuple[int, float]] = []
    # Of an attempt that was cut short: what it measured before the checkpoint that this one starts from.
    stored = read_json(folder / MEASURED) if start and (folder / MEASURED).exists() else []
    measured: list[dict[str, Any]] = [each for each in stored if each["step"] <= start]

    def on_progress(done: int, current: Log) -> None:
        marks.append((done, time.perf_counter()))
        if rank == 0:
            write_progress(folder, done, settings.steps)

    probe_at = [] if job.probe is None else [int(step) for step in job.probe["steps"]]
    checkpoint_at = (
        range(job.checkpoint_every, settings.steps, job.checkpoint_every) if job.checkpoint_every else ()
    )

    def on_stop(done: int, current: Log) -> None:
        if done in probe_at and job.probe is not None:
            from unidetox_ray.stages.probe import measure

            stepper.engine.module.eval()
            with stepper.blocks.paused():
                numbers = measure(unwrapped(stepper.engine.module), tokenizer, job.probe, device, step=done)
            values = {"step": done, "loss": current.loss[-1], **numbers}
            stepper.engine.module.train()
            measured.append(values)
            if rank == 0:
                write_json(folder / MEASURED, measured)
            report(values)
        if done in checkpoint_at:  # last: what starts from it must not lack a measurement
            checkpoints.save(
                stepper.engine, folder, job.key, done, current, time.perf_counter() - started + seconds_before
            )

    training_started = time.perf_counter()
    train(
        stepper, rows, ids.pad, settings, start=start, log=log, rank=rank, world=world,
        on_progress=on_progress, stops=[*checkpoint_at, *probe_at], on_stop=on_stop, pace=pace,
    )  # fmt: skip
    training_seconds = time.perf_counter() - training_started
    if job.probe is None:
        with stepper.blocks.paused():
            save_model(
                stepper.engine, model, tokenizer, folder, rows[:2], rank,
                adapter=job.adapter, base=job.model,
            )  # fmt: skip
    if rank == 0:
        write_log(folder, log, training_seconds)
        speed = speed_values(pace, weights, settings, stepper, world)
        write_json(
            folder / "settings.json", {**job.settings, "world_size": world, "device": device, "speed": speed}
        )
        if job.probe is None:
            write_text(folder / "README.md", model_card(job.settings, counts, base=job.model["name"]))
        checkpoints.clear(folder)
        for name in ("progress.json", MEASURED):
            (folder / name).unlink(missing_ok=True)
        write_manifest(
            folder, stage="train", key=job.key, seconds=time.perf_counter() - started, config=job.config, inputs=job.inputs,
            counts={"expected": counts["texts"], "ok": counts["texts"] - counts["too_short"], "failed": counts["too_short"]},
            extra={
                "name": job.name, "family": job.family, "texts": counts, "steps": settings.steps, "measured": measured,
                "train_seconds": round(training_seconds + seconds_before, 3), "train_tokens": sum(log.tokens),
                "trainable_parameters": weights.trainable, "adapter_targets": targets,
                "final_loss": log.loss[-1], "device": device, "world_size": world, "resumed_at": start, "speed": speed,
            },
        )  # fmt: skip
    stepper.engine.destroy()


def check_packing(model: Any, job: Job, length: int) -> None:
    """ConfigError where this model's texts would not stay apart in a shared row, by its own numbers."""
    from unidetox_ray.core.attending import keeps_apart

    if not keeps_apart(model, length):
        raise ConfigError(
            f"{job.name}: packing = true, but texts that share a row change each other's predictions in "
            f"{job.model['name']} (family {job.family}); use packing: false"
        )


def speed_values(
    pace: Any, parameters: Any, settings: LoopSettings, stepper: DeepSpeedStepper, world: int
) -> dict[str, Any]:
    """How fast the steps were (`core.flops.Speed`) and what took them; empty when a job had no step left to do."""
    import torch

    from unidetox_ray.core.flops import peak_flops, speed_of

    if not pace.seconds:
        return {}
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    speed = speed_of(pace.seconds, pace.tokens, parameters, peak_flops(pace.device, dtype), world)
    return {
        **({} if speed is None else speed.as_dict()),
        "compiled": stepper.blocks.active,
        "engine_steps": stepper.plain is None,
    }


def set_dropout(model: Any, share: float) -> None:
    """Every dropout layer of the model, and the attention's, set to one share."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)


def refuse_adapted(model: Any, job: Job) -> None:
    """ConfigError for a base model that has bottleneck adapters: what trains on it would not be saved with them."""
    from unidetox_ray.core.bottleneck import has_bottlenecks

    if has_bottlenecks(model):
        raise ConfigError(
            f"{job.name}: {job.model['name']} is a folder of bottleneck adapters, which cannot be trained further; "
            "give the model that they belong to"
        )


def with_adapter(model: Any, adapter: dict[str, Any], seed: int) -> Any:
    """The model, frozen, with fresh adapters of `adapter["kind"]`. At the start its logits are the model's own."""
    if adapter["kind"] == "lora":
        return with_lora(model, adapter)
    from unidetox_ray.families.bottleneck import with_bottlenecks

    return with_bottlenecks(model, size=adapter["size"], seed=seed)


def adapted_layers(model: Any) -> list[str] | None:
    """What peft put adapters on, names as in its config; None for a model without its adapters."""
    found = getattr(model, "peft_config", None)
    return None if found is None else sorted(found["default"].target_modules)


def unwrapped(model: Any) -> Any:
    """The model within peft's wrapper, its adapters in place: the wrapper hides which arguments the forward takes."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def with_lora(model: Any, settings: dict[str, Any]) -> Any:
    """Low-rank adapters (Hu et al. 2021) on the model's linear layers (`families.targets`), through peft."""
    import peft

    from unidetox_ray.families.targets import lora_targets

    config = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=lora_targets(model),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def write_progress(folder: Path, done: int, total: int) -> None:
    write_json(folder / "progress.json", {"done": done, "total": total})


def read_progress(folder: Path) -> int:
    try:
        return int(json.loads((folder / "progress.json").read_text())["done"])
    except (OSError, ValueError, KeyError):
        return 0


def write_log(folder: Path, log: Any, seconds: float) -> None:
    steps = len(log.step)
    table = pl.DataFrame(
        asdict(log),
        schema={
            "step": pl.Int64,
            "loss": pl.Float64,
            "lr": pl.Float64,
            "grad_norm": pl.Float64,
            "tokens": pl.Int64,
        },
    )
    write_parquet(folder / "train_log.parquet", table.with_columns(seconds=pl.lit(seconds / max(steps, 1))))


def group_trainer(
    name: str, jobs: Sequence[Job], cluster: ClusterSection, storage: Path, callbacks: Sequence[Any] = ()
) -> Any:
    """The TorchTrainer of one training group; its name is fixed by its jobs, so a restart is the same run."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from unidetox_ray.stages.cluster import has_gpus, on_one_machine
    from unidetox_ray.stages.meeting import OneMachine, SeveralMachines

    gpus = has_gpus()
    meeting = OneMachine if on_one_machine() else SeveralMachines
    shutil.rmtree(storage / name, ignore_errors=True)  # the jobs' own folders hold all that resumes
    return TorchTrainer(
        train_worker,
        train_loop_config={"jobs": [asdict(job) for job in jobs], "threads": cluster.threads},
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers_per_cell, use_gpu=gpus, resources_per_worker={"GPU": 1} if gpus else {"CPU": 1}
        ),
        run_config=ray.train.RunConfig(
            name=name, storage_path=str(storage), callbacks=list(callbacks) or None,
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
        torch_config=meeting(backend="nccl" if gpus else "gloo"),
    )  # fmt: skip


def run_group(name: str, jobs: Sequence[Job], cluster: ClusterSection, storage: Path) -> list[Outcome]:
    """Run a group's jobs to the end of all of them. A job that brings the group down is failed; those behind it go on.

    A job whose worker died is tried again, from its last checkpoint, `cluster.max_restarts` times.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = list(jobs)
    deaths: Counter[str] = Counter()
    while waiting:
        error: str | None = None
        kind: type[UnidetoxError] = StageError
        dead = False
        try:
            if any(finished(Path(job.folder), job.key) is None for job in waiting):
                group_trainer(name, waiting, cluster, storage).fit()
        except (
            Exception
        ) as problem:  # whatever Ray raises for whatever the worker did: it becomes the job's error
            (error, kind), dead = failure(problem), died(problem)
        still = []
        for job in waiting:
            manifest = finished(Path(job.folder), job.key)
            if manifest is not None:
                outcomes[job.name] = Outcome(job.name, manifest=manifest)
            else:
                still.append(job)
        if still and dead:
            deaths[still[0].name] += 1
            if deaths[still[0].name] <= cluster.max_restarts:
                waiting = still
                continue
        if still and error is None:
            error = f"the training ended without a result in {still[0].folder}; on several nodes every one must see that folder"
        if still:
            outcomes[still[0].name] = Outcome(still[0].name, error=error, kind=kind)
        waiting = still[1:]
    shutil.rmtree(storage / name, ignore_errors=True)
    return [outcomes[job.name] for job in jobs]


def failure(problem: BaseException) -> tuple[str, type[UnidetoxError]]:
    """(what a person wants to read, the kind to raise) of an error that Ray, Ray Train or Ray Tune wraps.

    They hand a worker's error on as the text of its trace, whose last line names its class: an error of ours so keeps
    its kind, and a user's mistake ends the command as one. With several workers, such an error comes before what it
    made the others fail with.
    """
    wrapped = [*(getattr(problem, "worker_failures", None) or {}).values(), getattr(problem, "cause", None)]
    inside = [failure(each) for each in wrapped if isinstance(each, BaseException)]
    if inside:
        return next((each for each in inside if each[1] is not StageError), inside[0])
    name = type(problem).__name__
    if isinstance(problem, UnidetoxError):
        return str(problem), kind_named(name)
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    if not lines:
        return name, StageError
    written, _, text = lines[-1].partition(": ")
    if text and written.startswith(f"{UnidetoxError.__module__}."):
        return text[:400], kind_named(written.rpartition(".")[2])
    # A bare KeyError says no more than the key.
    return (f"{name}: {lines[-1]}" if type(problem).__module__ == "builtins" else lines[-1])[:400], StageError
