"""`bench generate`: the evaluation protocol's continuations in batches, against one prompt at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from unidetox_ray.bench import plain
from unidetox_ray.bench.decode import record
from unidetox_ray.bench.limits import costs_of, limits_of
from unidetox_ray.bench.options import Options
from unidetox_ray.bench.result import BenchResult
from unidetox_ray.bench.setting import place_of
from unidetox_ray.bench.shapes import causal_model, check_room, token_rows
from unidetox_ray.bench.timing import Clock, forget_peak, seconds_of, wait_for
from unidetox_ray.core.decode import decode
from unidetox_ray.core.logits import Sampling
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.runners import runner_of

#: The protocol: 25 continuations from the nucleus of 0.9 (paper section 4), of prompts about as long as ToxiGen's.
COPIES, TOP_P, SHORTEST, LONGEST = 25, 0.9, 5, 40
_CPU_ROWS = 256


def run(options: Options) -> BenchResult:
    """Continuations of prompts of mixed length. batch: rows at once."""
    with place_of(options, cpu_size="tiny", gpu_size="gpt2-xl") as place:
        check_room(place.size, 1, place.device, place.dtype.itemsize)
        tokens = options.tokens or 20
        rows = options.batch or (None if place.on_gpu else _CPU_ROWS)
        model = causal_model(place.size, place.device, place.dtype)
        prompts = token_rows(options.texts or 200, SHORTEST, LONGEST, model.config.vocab_size)
        limits_of(place.device, place.dtype)
        clock = Clock()
        forget_peak(place.device)
        started = time.perf_counter()
        runner = runner_of(model)
        wait_for(place.device)
        clock.prepared = time.perf_counter() - started

        def ours() -> None:
            continued(runner, prompts, tokens, rows=rows)

        def theirs() -> None:
            plain.continued_prompts(model, prompts, COPIES, tokens, top_p=TOP_P)

        clock.warm(ours, place.device)
        if options.plain:
            few = prompts[:2]
            seconds_of(lambda: plain.continued_prompts(model, few, COPIES, tokens, top_p=TOP_P), place.device)
        clock.race(
            ours,
            theirs if options.plain else None,
            place.device,
            repeats=options.repeats,
            patience=options.patience,
        )
        return record(
            "generate", place, clock, [costs_of(model)], [len(prompt) for prompt in prompts], tokens, copies=COPIES,
            rows=rows, extra={"prompts": len(prompts), "copies": COPIES, "runner": type(runner).__name__},
        )  # fmt: skip


def continued(
    runner: Any, prompts: Sequence[Sequence[int]], tokens: int, *, copies: int = COPIES, rows: int | None = None,
    top_k: int = 0,
) -> list[list[int]]:  # fmt: skip
    """`copies` continuations of each prompt by the engine."""
    decoded = decode(
        [runner],
        prompts,
        uniform=uniforms(0, range(len(prompts) * copies), tokens),
        max_new_tokens=tokens,
        end_ids=[],
        pad_id=0,
        sampling=Sampling(top_k=top_k, top_p=TOP_P),
        copies=copies,
        rows=rows,
    )
    return [sequence.ids for sequence in decoded]
