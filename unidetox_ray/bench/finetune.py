"""`bench finetune`: a training step of the package's plain stepper, against the eager loop with ordinary AdamW."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import torch

from unidetox_ray.bench.limits import costs_of, limits_of, training_needs
from unidetox_ray.bench.options import Options
from unidetox_ray.bench.plain import EagerTraining
from unidetox_ray.bench.result import BenchResult
from unidetox_ray.bench.setting import Place, place_of
from unidetox_ray.bench.shapes import causal_model, check_room, token_rows
from unidetox_ray.bench.timing import Clock, forget_peak, wait_for
from unidetox_ray.core.loop import LoopSettings, PlainStepper, batch_at, learning_rate, train

_LR = 1e-5


def run(options: Options) -> BenchResult:
    """Steps over rows of equal length. batch: rows a step. seconds: of all steps of one run."""
    with place_of(options, cpu_size="tiny", gpu_size="gpt2-xl") as place:
        small = place.size == "tiny"
        batch = options.batch or 8
        length = options.tokens or (64 if small else 256)
        steps = max(1, (options.texts or batch * (20 if small or place.on_gpu else 3)) // batch)
        # Weights, gradients and two moments; on a CPU both sides are in memory at once.
        check_room(
            place.size, 4 if place.on_gpu or not options.plain else 8, place.device, place.dtype.itemsize
        )
        rows = token_rows(steps * batch, length, length, 900 if small else 30000)
        settings = LoopSettings(
            steps=steps, lr=_LR, batch_size=batch, schedule="constant",
            precision="bf16_pure" if place.dtype == torch.bfloat16 else "fp32",
        )  # fmt: skip
        limits_of(place.device, place.dtype)
        model = causal_model(place.size, place.device, place.dtype)
        costs = costs_of(model)
        clock = Clock()
        forget_peak(place.device)
        started = time.perf_counter()
        stepper = PlainStepper(model, settings)
        wait_for(place.device)
        clock.prepared = time.perf_counter() - started
        losses: dict[str, float] = {}

        def ours() -> None:
            losses["loss"] = train(stepper, rows, 0, settings, every=steps).loss[-1]

        clock.warm(ours, place.device)
        if place.on_gpu:
            # One after the other: two models with their optimisers need not fit side by side.
            clock.race(ours, None, place.device, repeats=options.repeats, patience=options.patience)
            del ours, stepper, model
            _release()
        if options.plain:
            theirs = _eager(place, rows, settings)
            theirs()
            clock.race(
                None if place.on_gpu else ours,
                theirs,
                place.device,
                repeats=options.repeats,
                patience=options.patience,
            )
        elif not place.on_gpu:
            clock.race(ours, None, place.device, repeats=options.repeats, patience=options.patience)
        limits = limits_of(place.device, place.dtype)
        tokens = steps * batch * length
        needs = training_needs(costs, tokens, steps)
        return BenchResult(
            name="finetune", device=str(place.device), dtype=place.dtype_name, batch=batch, seconds=clock.seconds,
            warmup_seconds=clock.warmup_seconds, tokens_per_second=tokens / clock.seconds, ratio_to_plain=clock.ratio,
            share_of_limit=limits.seconds(needs) / clock.seconds, peak_gib=clock.peak_gib,
            extra={
                **place.described(), "batch_is": "rows", "steps": steps, "row_tokens": length, "precision": settings.precision,
                "parameters": costs.parameters, "step_ms": 1e3 * clock.seconds / steps,
                "plain_step_ms": 1e3 * min(clock.plain_runs) / steps if clock.plain_runs else None,
                "mfu": needs.operations / limits.arithmetic / clock.seconds, **losses, "ratio": "plain / ours",
                "first_seconds": clock.prepared + clock.first, "runs": clock.runs, "plain_runs": clock.plain_runs, **limits.as_dict(),
            },
        )  # fmt: skip


def _eager(place: Place, rows: Sequence[Sequence[int]], settings: LoopSettings) -> Callable[[], float]:
    """The eager loop over the same rows in the same order; returns the last loss."""
    training = EagerTraining(causal_model(place.size, place.device, place.dtype), learning_rate(0, settings))

    def loop() -> float:
        return [training.step(batch_at(step, rows, 0, settings).input_ids) for step in range(settings.steps)][
            -1
        ]

    return loop


def _release() -> None:
    gc.collect()
    torch.cuda.empty_cache()
