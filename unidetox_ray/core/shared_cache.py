"""The released code's sampling loop, in which every model reads the first model's keys and values (its D:273-275).

A defect that is reproduced on purpose (`kv_cache: shared`). It needs Hugging Face's own cache objects, which can be
handed from one model to another, and no speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unidetox_ray.core.decode import Decoded
from unidetox_ray.core.lm import CachedLM, left_padded
from unidetox_ray.core.logits import NOTHING, Mixture, Sampling, draw, filtered


@torch.inference_mode()
def decode_shared_cache(
    models: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    *,
    uniform: Tensor,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    mixture: Mixture,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> list[Decoded]:
    """One continuation of every prompt; arguments as in `core.decode.decode`, with models instead of runners.

    Each model reads the prompt itself. From the second token on, models 1.. see the cache that model 0 had before
    the step, and forget their own.
    """
    rows = len(prompts)
    if uniform.shape != (rows, max_new_tokens):
        raise ValueError(f"uniform is {tuple(uniform.shape)}, expected {(rows, max_new_tokens)}")
    device = next(models[0].parameters()).device
    ids, mask = (tensor.to(device) for tensor in left_padded(prompts, pad_id))
    uniform = uniform.to(device)
    ends = torch.tensor([*end_ids, NOTHING], dtype=torch.long, device=device)
    lms = [CachedLM(model) for model in models]
    logits = [lm.prefill(ids, mask) for lm in lms]
    tokens = torch.full((rows, max_new_tokens), pad_id, dtype=torch.long, device=device)
    lengths = torch.full((rows,), max_new_tokens, dtype=torch.long, device=device)
    broken = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        token = draw(filtered(mixture.scores(logits), sampling), uniform[:, step])
        broken |= (token == NOTHING) & (lengths == max_new_tokens)
        lengths[torch.isin(token, ends) & (lengths == max_new_tokens)] = step
        token = token.clamp(min=0)
        tokens[:, step] = token
        if step + 1 == max_new_tokens or bool((lengths <= step).all()):
            break
        handed = [lms[0].copy_cache() for _ in lms[1:]]
        first = lms[0].step(token)
        logits = [first, *(lm.step(token, cache) for lm, cache in zip(lms[1:], handed, strict=True))]
    return [
        Decoded(row[:length], length < max_new_tokens and not lost, lost)
        for row, length, lost in zip(tokens.tolist(), lengths.tolist(), broken.tolist(), strict=True)
    ]
