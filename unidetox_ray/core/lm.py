"""One causal language model and its own key-value cache, driven one position at a time.

The model is any callable with Hugging Face's forward signature and output (`logits`, `past_key_values`), so that
this package needs no transformers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as (B, T) int64 ids and mask, padding on the left. Every prompt holds >= 1 id."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {row} is empty; a model needs at least one id (its start token)")
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


class CachedLM:
    """Prefill once, then step: each call returns the logits of the next position, (B, V) float32."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: Any = None
        self.mask: Tensor | None = None
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        # Logits of the prompt's inner positions are never read; models that can skip them do.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def prefill(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Read left-padded prompts, (B, T) int64 ids and mask."""
        self.cache, self.mask = None, mask
        return self._forward(ids, mask)

    def step(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """Append one token per row, (B,) int64. `cache` replaces this model's own for this step alone."""
        assert self.mask is not None, "step() before prefill()"
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        if cache is not None:
            self.cache = cache
        return self._forward(tokens.unsqueeze(1), self.mask)

    def copy_cache(self) -> Any:
        return copy.deepcopy(self.cache)

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        extra: dict[str, Any] = dict(self._last_only)
        if self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            extra["position_ids"] = positions[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **extra
        )
        self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits
