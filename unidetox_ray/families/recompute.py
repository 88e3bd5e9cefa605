"""A runner that keeps no cache: every step reads every row again from its start.

For models whose state cannot be copied from row to row, or whose library code mixes rows up (RWKV, RecurrentGemma,
MiniMax's linear attention). Rows are padded on the right, where a causal model does not look, so that no mask is needed.
A text of T tokens costs T forwards of up to T positions instead of T of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unidetox_ray.core.labelled import labelled_logits, labelled_only


class RecomputeRunner:
    """`core.runner.Runner` over a model's own forward, without its cache."""

    refills = True
    shrinks = True

    def __init__(self, model: Any) -> None:
        """model: a causal language model in evaluation mode; it is used, not copied."""
        self.model = model
        self.vocab = int(model.get_output_embeddings().weight.shape[0])
        self.device: torch.device = model.device
        self._ids = torch.empty((0, 0), dtype=torch.long)
        self._lengths = torch.empty(0, dtype=torch.long)

    @property
    def on_hidden(self) -> Callable[[Tensor], Tensor] | None:
        return None

    @on_hidden.setter
    def on_hidden(self, call: Callable[[Tensor], Tensor] | None) -> None:
        if call is not None:
            raise NotImplementedError(
                f"a {type(self.model).__name__} is decoded without a cache, where hidden states cannot be changed"
            )

    def open(self, rows: int, capacity: int) -> None:
        self._ids = torch.zeros((rows, capacity), dtype=torch.long, device=self.device)
        # A row that was never filled is read as one id.
        self._lengths = torch.ones(rows, dtype=torch.long, device=self.device)

    def close(self) -> None:
        self.open(0, 0)

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        self._room(ids.shape[1])
        self._ids[rows] = torch.nn.functional.pad(ids, (0, self._ids.shape[1] - ids.shape[1]))
        self._lengths[rows] = lengths
        return self._logits(self._ids[rows], lengths)

    def repeat(self, source: Tensor, target: Tensor) -> None:
        self._ids[target], self._lengths[target] = self._ids[source], self._lengths[source]

    def step(self, tokens: Tensor) -> Tensor:
        self._room(int(self._lengths.max()) + 1)
        self._ids[torch.arange(len(tokens), device=self.device), self._lengths] = tokens
        self._lengths = self._lengths + 1
        return self._logits(self._ids, self._lengths)

    def keep(self, rows: Tensor) -> None:
        self._ids, self._lengths = self._ids[rows], self._lengths[rows]

    def _room(self, positions: int) -> None:
        """Rows that ended are stepped on beside the others, past what was asked for."""
        lacking = positions - self._ids.shape[1]
        if lacking > 0:
            self._ids = torch.nn.functional.pad(self._ids, (0, max(lacking, positions // 2)))

    def _logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        longest = int(lengths.max())
        rows = len(ids)
        where = torch.arange(rows, device=self.device) * longest + lengths - 1
        with labelled_only(self.model, where, rows, longest) as seen:
            output = self.model(input_ids=ids[:, :longest], use_cache=False)
        return labelled_logits(output.logits, where, seen)
