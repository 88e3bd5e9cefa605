"""`bench decode`: UniDetox's contrast of two models, from the start token, against `generate` with a logits processor."""

from __future__ import annotations

import time
from typing import Any

from unidetox_ray.bench import plain
from unidetox_ray.bench.limits import Costs, costs_of, decode_needs, limits_of
from unidetox_ray.bench.options import Options
from unidetox_ray.bench.result import BenchResult
from unidetox_ray.bench.setting import Place, place_of
from unidetox_ray.bench.shapes import START, causal_model, check_room
from unidetox_ray.bench.timing import Clock, forget_peak, seconds_of, wait_for
from unidetox_ray.core.decode import decode
from unidetox_ray.core.logits import Mixture, Sampling
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.runners import runner_of

#: The paper's plausibility cut.
ALPHA = 0.1
#: What `generate`'s growing caches take at once beside two GPT-2 XL on a large GPU.
_PLAIN_BATCH = 128


def run(options: Options) -> BenchResult:
    """Texts of equal length by base and toxic model in lock-step. batch: rows at once."""
    with place_of(options, cpu_size="gpt2", gpu_size="gpt2-xl") as place:
        check_room(place.size, 2, place.device, place.dtype.itemsize)
        rows = options.batch
        texts = options.texts or rows or (640 if place.on_gpu else 16)
        tokens = options.tokens or (255 if place.on_gpu else 64)
        base, toxic = (causal_model(place.size, place.device, place.dtype, seed=seed) for seed in (0, 1))
        limits_of(place.device, place.dtype)
        clock = Clock()
        forget_peak(place.device)
        started = time.perf_counter()
        runners = [runner_of(model) for model in (base, toxic)]
        wait_for(place.device)
        clock.prepared = time.perf_counter() - started

        def ours() -> None:
            contrast_texts(runners, texts, tokens, rows=rows)

        def theirs(new: int = tokens) -> None:
            plain.contrast_texts(base, toxic, START, texts, new, alpha=ALPHA, batch=plain_batch)

        plain_batch = min(rows or texts, _PLAIN_BATCH)
        clock.warm(ours, place.device)
        if options.plain:
            seconds_of(lambda: theirs(2), place.device)
        clock.race(
            ours,
            theirs if options.plain else None,
            place.device,
            repeats=options.repeats,
            patience=options.patience,
        )
        costs = [costs_of(model) for model in (base, toxic)]
        return record(
            "decode", place, clock, costs, [1] * texts, tokens, rows=rows,
            extra={"texts": texts, "plain_batch": plain_batch, "runners": [type(r).__name__ for r in runners]},
        )  # fmt: skip


def contrast_texts(
    runners: list[Any], texts: int, tokens: int, *, rows: int | None = None, top_k: int = 0
) -> list[list[int]]:
    """`texts` sequences of `tokens` ids by the engine."""
    decoded = decode(
        runners,
        [[START]] * texts,
        uniform=uniforms(0, range(texts), tokens),
        max_new_tokens=tokens,
        end_ids=[],
        pad_id=0,
        mixture=Mixture(weights=(1.0, -1.0), alpha=ALPHA),
        sampling=Sampling(top_k=top_k),
        rows=rows,
    )
    return [sequence.ids for sequence in decoded]


def record(
    name: str, place: Place, clock: Clock, costs: list[Costs], prompts: list[int], tokens: int, *,
    copies: int = 1, rows: int | None, extra: dict[str, Any],
) -> BenchResult:  # fmt: skip
    """The record of a job that generated `tokens` tokens for `copies` of each prompt (lengths)."""
    sequences = len(prompts) * copies
    limits = limits_of(place.device, place.dtype)
    needs = decode_needs(costs, prompts, tokens, copies=copies, rows=rows)
    return BenchResult(
        name=name, device=str(place.device), dtype=place.dtype_name, batch=min(rows or sequences, sequences),
        seconds=clock.seconds, warmup_seconds=clock.warmup_seconds, tokens_per_second=sequences * tokens / clock.seconds,
        ratio_to_plain=clock.ratio, share_of_limit=limits.seconds(needs) / clock.seconds, peak_gib=clock.peak_gib,
        extra={
            **place.described(), **extra, "batch_is": "rows" if rows else "rows at most; the engine chooses",
            "new_tokens": sequences * tokens, "ratio": "plain / ours", "first_seconds": clock.prepared + clock.first,
            "runs": clock.runs, "plain_runs": clock.plain_runs, **limits.as_dict(),
            "needs_gb": needs.bytes / 1e9, "needs_gflop": needs.operations / 1e9,
        },
    )  # fmt: skip
