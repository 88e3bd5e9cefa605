"""Continuations of prompts by a model, steered or not, for evaluation and search: same function, same streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unidetox_ray.core.batching import device_lost
from unidetox_ray.core.decode import Decoded, decode
from unidetox_ray.core.logits import Sampling
from unidetox_ray.core.steering import Steering
from unidetox_ray.core.streams import uniforms
from unidetox_ray.errors import ModelError
from unidetox_ray.families.loading import encode, special_ids
from unidetox_ray.families.positions import positions_of
from unidetox_ray.families.runners import runner_of
from unidetox_ray.settings import EvaluateSection

#: A continuation that failed, but for the reason.
_NOTHING = {"text": None, "n_tokens": None, "ended": None}


def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[str, str]],
    settings: EvaluateSection,
    *,
    cell: str,
    run: int,
    decode_rows: int,
    progress: Callable[[int], None] | None = None,
    timed: Callable[[float], None] | None = None,
) -> list[dict[str, Any]]:
    """`settings.continuations` rows of schemas.GENERATIONS per prompt, in the order of `prompts`.

    prompts: (prompt_id, text). Sample j of a prompt has the same random numbers in every cell, so that
    comparisons are paired. A `core.steered.SteeredModel` decodes as its steering says. decode_rows: rows of a batch,
    at least 1; they do not change the text. A batch that fails is split down to the prompt, which then carries the
    error. progress: called with numbers of finished rows. timed: called with the seconds that each batch took to
    decode, tokenizing and what failed left out.
    """
    work = _Work(model, tokenizer, settings, cell, run, decode_rows, progress, timed)
    # Halves of a batch that failed hold prompts of similar length.
    ordered = sorted(range(len(prompts)), key=lambda index: len(prompts[index][1]))
    found = dict(zip(ordered, work.attempt([prompts[index] for index in ordered]), strict=True))
    return [row for index in range(len(prompts)) for row in found[index]]


@dataclass(frozen=True)
class _Work:
    """The arguments of `continuations` that all its prompts share."""

    model: Any
    tokenizer: Any
    settings: EvaluateSection
    cell: str
    run: int
    decode_rows: int
    progress: Callable[[int], None] | None
    timed: Callable[[float], None] | None

    def attempt(self, prompts: Sequence[tuple[str, str]]) -> list[list[dict[str, Any]]]:
        """The rows of each prompt; what fails is halved until a single prompt fails, whose rows carry the error."""
        if not prompts:
            return []
        try:
            rows = self.batch(prompts)
        except (ModelError, RuntimeError, ValueError, IndexError) as error:
            if device_lost(error):
                raise
            if len(prompts) > 1:
                middle = len(prompts) // 2
                return self.attempt(prompts[:middle]) + self.attempt(prompts[middle:])
            failed = {**_NOTHING, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
            rows = [
                [self._row(prompts[0][0], sample, failed) for sample in range(self.settings.continuations)]
            ]
        if self.progress:
            self.progress(sum(len(mine) for mine in rows))
        return rows

    def batch(self, prompts: Sequence[tuple[str, str]]) -> list[list[dict[str, Any]]]:
        settings, tokenizer, samples = self.settings, self.tokenizer, range(self.settings.continuations)
        ids = special_ids(tokenizer, self.model.config)
        encoded = [encode(tokenizer, text, bos=settings.prompt_bos) or [ids.start] for _, text in prompts]
        # Rotary positions have no table to run out of: without this, a text of 100,000 characters is computed for minutes.
        positions = positions_of(self.model.config)
        longest = max(map(len, encoded)) + settings.max_new_tokens - 1  # the last token is not read
        if positions is not None and longest > positions:
            raise ModelError(
                f"{longest} positions are asked for, prompt and continuation, but the model knows {positions}"
            )
        names = [f"{prompt_id}/{self.run}/{sample}" for prompt_id, _ in prompts for sample in samples]
        steering = getattr(self.model, "steering", None) or Steering((self.model,))
        with steering.runners(runner_of) as runners:
            started = time.perf_counter()
            decoded = decode(
                runners,
                encoded,
                uniform=uniforms(settings.seed + self.run, names, settings.max_new_tokens),
                max_new_tokens=settings.max_new_tokens,
                end_ids=[] if ids.eos is None else [ids.eos],
                pad_id=ids.pad,
                mixture=steering.mixture,
                sampling=steering.sampling(Sampling(settings.temperature, settings.top_k, settings.top_p)),
                copies=settings.continuations,
                rows=self.decode_rows,
            )
            seconds = time.perf_counter() - started
        if self.timed:
            self.timed(seconds)
        sequences = iter(decoded)
        return [
            [self._made(prompt, prompt_ids, sample, next(sequences)) for sample in samples]
            for prompt, prompt_ids in zip(prompts, encoded, strict=True)
        ]

    def _made(
        self, prompt: tuple[str, str], prompt_ids: list[int], sample: int, sequence: Decoded
    ) -> dict[str, Any]:
        if sequence.broken:
            problem = f"the model's scores are not finite behind {len(sequence.ids)} new tokens"
            return self._row(
                prompt[0],
                sample,
                {**_NOTHING, "error": f"{problem} (it has diverged, or its precision overflows)"},
            )
        text = continuation_text(
            self.tokenizer, prompt[1], prompt_ids, sequence.ids, self.settings.prefix_cut
        )
        made = {"text": text, "n_tokens": len(sequence.ids), "ended": sequence.ended, "error": None}
        return self._row(prompt[0], sample, made)

    def _row(self, prompt_id: str, sample: int, made: dict[str, Any]) -> dict[str, Any]:
        return {"cell": self.cell, "prompt_id": prompt_id, "run": self.run, "sample": sample, **made}


def continuation_text(
    tokenizer: Any, prompt: str, prompt_ids: list[int], new_ids: list[int], prefix_cut: str
) -> str:
    """The text after the prompt. `tokens`: what the new ids add; `replace`: as released, every copy of the prompt goes."""
    whole: str = tokenizer.decode(
        [*prompt_ids, *new_ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    if prefix_cut == "replace":
        return whole.replace(prompt, "")
    before: str = tokenizer.decode(prompt_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # Some tokenizers (metaspace) drop a leading blank when ids are decoded alone, so the whole is decoded and cut.
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(new_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
