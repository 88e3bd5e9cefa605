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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import (
    finished,
    private_folder,
    write_json,
    write_manifest,
    write_parquet,
    write_text,
)
from unidetox_ray.cards import model_card
from unidetox_ray.core.loop import Batch, LoopSettings
from unidetox_ray.errors import StageError
from unidetox_ray.settings import ClusterSection, DeepSpeedSection, FinetuneSection, ToxicSection


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
    )


class DeepSpeedStepper:
    """`core.loop.Stepper` on a DeepSpeed engine."""

    def __init__(self, model: Any, settings: LoopSettings, section: DeepSpeedSection, world: int) -> None:
        import torch

        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        import deepspeed.ops

        from unidetox_ray.core.loop import adamw
        from unidetox_ray.stages.deepspeed_config import deepspeed_config

        if not on_gpu:
            # Else `initialize` compiles a shared-memory extension with g++ for a minute; gloo does its work.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        model = model.to("cuda" if on_gpu else "cpu")
        model = model.to(torch.bfloat16 if settings.precision == "bf16_pure" else torch.float32)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=adamw(trainable, settings),
            config=deepspeed_config(section, settings, world),
            dist_init_required=False,
        )
        self.engine.train()
        self.world = world
        self.no_norm = section.stage == 0 and settings.precision != "bf16_master"

    def step(self, batch: Batch, lr: float) -> tuple[Any, Any]:
        import torch

        from unidetox_ray.core.loss import lm_loss

        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        device = self.engine.device
        output = self.engine(
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            use_cache=False,
        )
        labels = batch.labels.to(device)
        loss = lm_loss(output.logits, labels)
        shared, whole = self._weighted(loss, labels)
        self.engine.backward(shared)
        # Without a sharding or bfloat16 optimiser DeepSpeed clips but keeps no norm.
        own = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in self.engine.module.parameters() if parameter.grad is not None]
        ) if self.no_norm else None  # fmt: skip
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if own is None else own
        return whole.detach(), torch.as_tensor(float("nan") if norm is None else norm).detach()

    def _weighted(self, loss: Any, labels: Any) -> tuple[Any, Any]:
        """(loss for this worker's backward pass, loss of the whole batch).

        DeepSpeed averages gradients over workers; workers have different numbers of tokens, so that each loss is
        weighted by its share. The result is the one-worker mean over tokens.
        """
        import torch
        import torch.distributed as dist

        from unidetox_ray.core.loss import IGNORE

        if self.world == 1:
            return loss, loss
        count = (labels[:, 1:] != IGNORE).sum()
        sums = torch.stack([loss.detach().float() * count, count.float()])
        dist.all_reduce(sums)
        return loss * (count * self.world / sums[1]), sums[0] / sums[1]


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
            run_job(job, device, context.get_world_rank(), context.get_world_size(), ray.train.report)
    if not any(job["probe"] for job in config["jobs"]):  # Tune refuses a report without the searched metric
        ray.train.report({"finished": len(config["jobs"])})


def run_job(job: Job, device: str, rank: int, world: int, report: Any) -> None:
    """Train one job and, on rank 0, leave its finished folder."""
    import torch

    from unidetox_ray.core.loop import Log, train
    from unidetox_ray.families.loading import load_model, load_tokenizer, special_ids
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
    if job.adapter is not None:
        model = with_lora(model, job.adapter)
    rows, counts = rows_of(job, tokenizer, ids.eos)
    if not rows:
        raise StageError(f"{job.name}: no text of {job.texts} holds two tokens; nothing to train on")
    stepper = DeepSpeedStepper(model, settings, DeepSpeedSection(**job.deepspeed), world)
    start, log = checkpoints.restore(stepper.engine, folder, job.key, Log())
    seconds_before = float(sum(checkpoints.seconds(folder, job.key)))
    marks: list[tuple[int, float]] = []
    measured: list[dict[str, Any]] = []

    def on_progress(done: int, current: Log) -> None:
        marks.append((done, time.perf_counter()))
        if rank == 0:
            write_progress(folder, done, settings.steps)

    probe_at = [] if job.probe is None else [int(step) for step in job.probe["steps"]]
    checkpoint_at = (
        range(job.checkpoint_every, settings.steps, job.checkpoint_every) if job.checkpoint_every else ()
    )

    def on_stop(done: int, current: Log) -> None:
        if done in checkpoint_at:
            checkpoints.save(
                stepper.engine, folder, job.key, done, current, time.perf_counter() - started + seconds_before
            )
        if done in probe_at and job.probe is not None:
            from unidetox_ray.stages.probe import measure

            stepper.engine.module.eval()
            values = {
                "step": done,
                "loss": current.loss[-1],
                **measure(stepper.engine.module, tokenizer, job.probe, device),
            }
            stepper.engine.module.train()
            measured.append(values)
            report(values)

    training_started = time.perf_counter()
    train(
        stepper, rows, ids.pad, settings, start=start, log=log, rank=rank, world=world,
        on_progress=on_progress, stops=[*checkpoint_at, *probe_at], on_stop=on_stop,
    )  # fmt: skip
    training_seconds = time.perf_counter() - training_started
    if job.probe is None:
        save_model(stepper.engine, model, tokenizer, folder, rows[:2], rank, adapter=job.adapter is not None)
    if rank == 0:
        write_log(folder, log, training_seconds)
        write_json(folder / "settings.json", {**job.settings, "world_size": world, "device": device})
        if job.probe is None:
            write_text(folder / "README.md", model_card(job.settings, counts, base=job.model["name"]))
        checkpoints.clear(folder)
        (folder / "progress.json").unlink(missing_ok=True)
        write_manifest(
            folder, stage="train", key=job.key, seconds=time.perf_counter() - started, config=job.config, inputs=job.inputs,
            counts={"expected": counts["texts"], "ok": counts["texts"] - counts["too_short"], "failed": counts["too_short"]},
            extra={
                "name": job.name, "family": job.family, "texts": counts, "steps": settings.steps, "measured": measured,
                "train_seconds": round(training_seconds + seconds_before, 3), "train_tokens": sum(log.tokens) * world,
                "final_loss": log.loss[-1], "device": device, "world_size": world, "resumed_at": start,
            },
        )  # fmt: skip
    stepper.engine.destroy()


def set_dropout(model: Any, share: float) -> None:
    """Every dropout layer of the model, and the attention's, set to one share."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)


def with_lora(model: Any, settings: dict[str, Any]) -> Any:
    """Low-rank adapters (Hu et al. 2021) on the family's own target modules, through peft."""
    import peft

    from unidetox_ray.families.loading import family_of

    targets = list(family_of(model.config).adapter_targets)
    config = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def save_model(
    engine: Any,
    model: Any,
    tokenizer: Any,
    folder: Path,
    prompts: list[list[int]],
    rank: int,
    *,
    adapter: bool,
) -> None:
    """Consolidated safetensors that `from_pretrained` opens, compared with the model in memory before they count."""
    import torch

    engine.module.eval()
    logits = []
    with torch.inference_mode():
        for ids in prompts:
            logits.append(
                engine.module(input_ids=torch.tensor([ids], device=engine.device)).logits.float().cpu()
            )
    stage3 = engine.zero_optimization_partition_weights()
    state = engine._zero3_consolidated_16bit_state_dict() if stage3 else None
    if rank != 0:
        return
    module = engine.module
    if adapter:
        module = module.merge_and_unload()
        state = None
    module.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    check_saved(folder, module, prompts, logits, merged=adapter)


def check_saved(
    folder: Path, module: Any, prompts: list[list[int]], logits: list[Any], *, merged: bool = False
) -> None:
    """StageError unless the folder reopens to the same model: same keys, finite values, same logits on two prompts."""
    import torch

    from unidetox_ray.families.loading import load_model

    reopened = load_model(
        str(folder), dtype=str(next(module.parameters()).dtype).removeprefix("torch."), device="cpu"
    )
    expected, found = set(module.state_dict()), set(reopened.state_dict())
    if expected != found:
        raise StageError(f"{folder}: saved weights lack or add tensors: {sorted(expected ^ found)[:4]}")
    for name, tensor in reopened.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StageError(f"{folder}: {name} holds values that are not finite")
    low_precision = next(module.parameters()).dtype != torch.float32
    tolerance = 0.25 if low_precision else (1e-3 if merged else 1e-4)
    with torch.inference_mode():
        for ids, before in zip(prompts, logits, strict=True):
            after = reopened.eval()(input_ids=torch.tensor([ids])).logits.float()
            gap = float((after - before).abs().max())
            if not gap <= tolerance:
                raise StageError(
                    f"{folder}: reopened logits differ by {gap:.3g} from the trained model's (accepted: {tolerance:g})"
                )


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
    from ray.train.torch import TorchConfig, TorchTrainer

    from unidetox_ray.stages.cluster import has_gpus

    gpus = has_gpus()
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
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
    )  # fmt: skip


def run_group(name: str, jobs: Sequence[Job], cluster: ClusterSection, storage: Path) -> list[Outcome]:
    """Run a group's jobs to the end of all of them. A job that brings the group down is failed; those behind it go on."""
    outcomes: dict[str, Outcome] = {}
    waiting = list(jobs)
    while waiting:
        error: str | None = None
        try:
            if any(finished(Path(job.folder), job.key) is None for job in waiting):
                group_trainer(name, waiting, cluster, storage).fit()
        except (
            Exception
        ) as problem:  # whatever Ray raises for whatever the worker did: it becomes the job's error
            error = reason(problem)
        still = []
        for job in waiting:
            manifest = finished(Path(job.folder), job.key)
            if manifest is not None:
                outcomes[job.name] = Outcome(job.name, manifest=manifest)
            else:
                still.append(job)
        if still and error is None:
            error = "the training ended without a result"
        if still:
            outcomes[still[0].name] = Outcome(still[0].name, error=error)
        waiting = still[1:]
    shutil.rmtree(storage / name, ignore_errors=True)
    return [outcomes[job.name] for job in jobs]


def reason(problem: BaseException) -> str:
    """The last line of the innermost error: what a person wants to read."""
    seen = problem
    failures = getattr(problem, "worker_failures", None)
    if failures:
        seen = next(iter(failures.values()))
    seen = getattr(seen, "cause", None) or seen
    lines = [line.strip() for line in str(seen).splitlines() if line.strip()]
    name = type(seen).__name__
    if not lines:
        return name
    # A bare KeyError says no more than the key.
    return (f"{name}: {lines[-1]}" if type(seen).__module__ == "builtins" else lines[-1])[:400]
