"""Sampling from one model, or from several in lock-step, in batches; and the slow twin that proves it right.

`combine` turns the models' next-token logits, a list of (B, V) float32, into (B, V) scores: the identity for
plain sampling, `logits.contrast` for UniDetox. Each model keeps its own cache. The released code hands the toxic
model the base model's cache (its D:273-275); `shared_cache=True` reproduces that on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidetox_ray.core.lm import CachedLM, left_padded
from unidetox_ray.core.logits import Sampling, draw, filtered

Combine = Callable[[list[Tensor]], Tensor]

#: Rows that ended are dropped from the batch once they are this share of it: each drop copies the caches.
_COMPACT_AT = 0.25


@dataclass(frozen=True)
class Decoded:
    """One sequence: its new ids without the end token, and whether an end token stopped it."""

    ids: list[int]
    ended: bool


def only_model(logits: list[Tensor]) -> Tensor:
    """Plain sampling: the first model's own logits."""
    return logits[0]


@torch.inference_mode()
def decode(
    models: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    *,
    uniform: Tensor,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    combine: Combine = only_model,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    copies: int = 1,
    shared_cache: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[Decoded]:
    """`copies` continuations of every prompt.

    models: same vocabulary, same device. prompts: N id lists, each with >= 1 id.
    uniform: (N * copies, max_new_tokens) float64 in [0, 1): row i * copies + j drives copy j of prompt i.
    end_ids: ids that end a row (may be empty). dtype: of the logits that are combined.
    Returns N * copies sequences in that order.
    """
    rows = len(prompts) * copies
    if uniform.shape != (rows, max_new_tokens):
        raise ValueError(f"uniform is {tuple(uniform.shape)}, expected {(rows, max_new_tokens)}")
    device = next(models[0].parameters()).device
    ids, mask = (tensor.to(device) for tensor in left_padded(prompts, pad_id))
    uniform = uniform.to(device)
    ends = torch.tensor(list(end_ids), dtype=torch.long, device=device)
    lms = [CachedLM(model) for model in models]
    logits = [lm.prefill(ids, mask, copies).to(dtype) for lm in lms]

    tokens = torch.full((rows, max_new_tokens), pad_id, dtype=torch.long, device=device)
    lengths = torch.full((rows,), max_new_tokens, dtype=torch.long, device=device)
    alive = torch.arange(rows, device=device)  # rows of the job that the batch still holds
    done = torch.zeros(rows, dtype=torch.bool, device=device)  # per row of the batch
    for step in range(max_new_tokens):
        token = draw(filtered(combine(logits), sampling), uniform[alive, step])
        newly = torch.isin(token, ends) & ~done
        lengths[alive[newly]] = step
        done |= newly
        tokens[alive, step] = token
        if step + 1 == max_new_tokens:
            break
        share = done.float().mean().item()
        if share == 1.0:
            break
        if share >= _COMPACT_AT:
            rows_left = (~done).nonzero().squeeze(-1)
            for lm in lms:
                lm.keep(rows_left)
            alive, token, done = alive[rows_left], token[rows_left], done[rows_left]
        logits = [row.to(dtype) for row in _step(lms, token, shared_cache)]
    cpu_tokens, cpu_lengths = tokens.tolist(), lengths.tolist()
    return [
        Decoded(row[:length], length < max_new_tokens)
        for row, length in zip(cpu_tokens, cpu_lengths, strict=True)
    ]


def _step(lms: list[CachedLM], token: Tensor, shared_cache: bool) -> list[Tensor]:
    if not shared_cache:
        return [lm.step(token) for lm in lms]
    copies = [lms[0].copy_cache() for _ in lms[1:]]
    first = lms[0].step(token)
    return [first, *(lm.step(token, cache) for lm, cache in zip(lms[1:], copies, strict=True))]


@torch.inference_mode()
def decode_slowly(
    models: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    *,
    uniform: Tensor,
    max_new_tokens: int,
    end_ids: Sequence[int],
    combine: Combine = only_model,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    copies: int = 1,
) -> list[Decoded]:
    """The twin of `decode`: one row at a time, the whole prefix recomputed at each step, no cache, no padding."""
    device = next(models[0].parameters()).device
    results = []
    for row in range(len(prompts) * copies):
        prefix, ended = list(prompts[row // copies]), False
        new: list[int] = []
        for step in range(max_new_tokens):
            ids = torch.tensor([prefix + new], device=device)
            logits = [model(input_ids=ids, use_cache=False).logits[:, -1].float() for model in models]
            token = int(draw(filtered(combine(logits), sampling), uniform[row : row + 1, step].to(device)))
            if token in end_ids:
                ended = True
                break
            new.append(token)
        results.append(Decoded(new, ended))
    return results
