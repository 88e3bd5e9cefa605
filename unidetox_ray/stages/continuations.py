"""Continuations of prompts by one model, for evaluation and for the search: same function, same streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unidetox_ray.core.decode import decode
from unidetox_ray.core.logits import Sampling
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.loading import encode, special_ids
from unidetox_ray.settings import EvaluateSection


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
) -> list[dict[str, Any]]:
    """`settings.continuations` rows of schemas.GENERATIONS per prompt, in the order of `prompts`.

    prompts: (prompt_id, text). Sample j of a prompt has the same random numbers in every cell, so that
    comparisons are paired. A batch that fails is split down to the prompt, which then carries the error.
    """
    per_prompt = settings.continuations
    ordered = sorted(range(len(prompts)), key=lambda index: len(prompts[index][1]))
    size = max(1, decode_rows // per_prompt)
    found: dict[int, list[dict[str, Any]]] = {}
    for start in range(0, len(ordered), size):
        chosen = ordered[start : start + size]
        for index, rows in zip(
            chosen, _attempt(model, tokenizer, [prompts[i] for i in chosen], settings, cell, run), strict=True
        ):
            found[index] = rows
        if progress:
            progress(len(chosen) * per_prompt)
    return [row for index in range(len(prompts)) for row in found[index]]


def _attempt(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[str, str]],
    settings: EvaluateSection,
    cell: str,
    run: int,
) -> list[list[dict[str, Any]]]:
    try:
        return _batch(model, tokenizer, prompts, settings, cell, run)
    except (RuntimeError, ValueError, IndexError) as error:
        if len(prompts) == 1:
            failed = {
                "cell": cell,
                "prompt_id": prompts[0][0],
                "run": run,
                "text": None,
                "n_tokens": None,
                "ended": None,
            }
            message = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            return [
                [{**failed, "sample": sample, "error": message} for sample in range(settings.continuations)]
            ]
        middle = len(prompts) // 2
        return [
            half
            for part in (prompts[:middle], prompts[middle:])
            for half in _attempt(model, tokenizer, part, settings, cell, run)
        ]


def _batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[str, str]],
    settings: EvaluateSection,
    cell: str,
    run: int,
) -> list[list[dict[str, Any]]]:
    ids = special_ids(tokenizer, model.config)
    encoded = [encode(tokenizer, text, bos=settings.prompt_bos) or [ids.start] for _, text in prompts]
    names = [
        f"{prompt_id}/{run}/{sample}" for prompt_id, _ in prompts for sample in range(settings.continuations)
    ]
    sequences = decode(
        [model],
        encoded,
        uniform=uniforms(settings.seed + run, names, settings.max_new_tokens),
        max_new_tokens=settings.max_new_tokens,
        end_ids=[] if ids.eos is None else [ids.eos],
        pad_id=ids.pad,
        sampling=Sampling(settings.temperature, settings.top_k, settings.top_p),
        copies=settings.continuations,
    )
    rows = []
    for index, (prompt_id, text) in enumerate(prompts):
        mine = sequences[index * settings.continuations : (index + 1) * settings.continuations]
        rows.append(
            [
                {
                    "cell": cell, "prompt_id": prompt_id, "run": run, "sample": sample,
                    "text": continuation_text(tokenizer, text, encoded[index], sequence.ids, settings.prefix_cut),
                    "n_tokens": len(sequence.ids), "ended": sequence.ended, "error": None,
                }
                for sample, sequence in enumerate(mine)
            ]
        )  # fmt: skip
    return rows


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
