"""A runner for any Hugging Face causal language model, through the model's own forward.

Slower than the lean decoder and tied to the library's layout: prompts are padded on the left, all rows are at the
same column of the cache, so a row cannot be read anew while others are under way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values of one attention layer in a buffer with room to grow, instead of a concatenation a step.

    keys and values stay what the library expects: (B, heads, length, D), here as views of the buffers.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer, capacity: int) -> None:
        """Takes over what `layer` holds; capacity: positions in all, more are made room for when needed."""
        super().__init__()
        self.is_initialized, self.dtype, self.device = True, layer.dtype, layer.device
        self._buffers: list[Tensor] = []
        assert layer.keys is not None and layer.values is not None, "nothing was read yet"
        self._hold(layer.keys, layer.values, capacity)

    def _hold(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        length = keys.shape[2]
        buffers = []
        for given in (keys, values):
            buffer = given.new_empty((*given.shape[:2], max(capacity, length), given.shape[3]))
            buffer[:, :, :length] = given
            buffers.append(buffer)
        self._buffers = buffers
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        length, new = self.keys.shape[2], key_states.shape[2]
        if length + new > self._buffers[0].shape[2]:
            self._hold(self.keys, self.values, 2 * (length + new))
        self._buffers[0][:, :, length : length + new] = key_states
        self._buffers[1][:, :, length : length + new] = value_states
        self._show(length + new)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        capacity = self._buffers[0].shape[2]
        self._hold(self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx), capacity)


class GenericRunner:
    """`core.runner.Runner` over a model's own forward and the cache that the model itself makes.

    Plain attention layers get a `GrowingLayer`; sliding windows, state-space and other layers stay the library's own.
    """

    refills = False
    shrinks = True

    def __init__(self, model: Any) -> None:
        """model: a causal language model in evaluation mode; it is used, not copied."""
        self.model = model
        self.vocab = int(model.get_output_embeddings().weight.shape[0])
        self.device: torch.device = model.device
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        # State-space models call their state by another name.
        self._cache_name = "past_key_values" if "past_key_values" in parameters else "cache_params"
        # Logits of the prompt's inner positions are never read; models that can skip them do.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._on_hidden: Callable[[Tensor], Tensor] | None = None
        self._hook: Any = None
        self._rows = self._capacity = self._column = 0
        self._cache: Any = None
        self._mask = torch.empty((0, 0), dtype=torch.long)
        self._positions = torch.empty(0, dtype=torch.long)

    @property
    def on_hidden(self) -> Callable[[Tensor], Tensor] | None:
        return self._on_hidden

    @on_hidden.setter
    def on_hidden(self, call: Callable[[Tensor], Tensor] | None) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._on_hidden = call
        if call is not None:
            self._hook = self.model.get_output_embeddings().register_forward_pre_hook(_at_the_end(call))

    def open(self, rows: int, capacity: int) -> None:
        self._rows, self._capacity, self._cache = rows, capacity, None

    def close(self) -> None:
        self._cache = None

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        count, longest = ids.shape
        if self._cache is not None or rows.tolist() != list(range(count)):
            raise ValueError("this runner reads all prompts at once, into rows 0, 1, ...")
        # From right to left padding: column c of a row is its prompt's position c - (longest - length).
        places = torch.arange(longest, device=ids.device) - (longest - lengths).unsqueeze(1)
        left = ids.gather(1, places.clamp(min=0))
        mask = torch.ones((count, max(self._capacity, longest)), dtype=torch.long, device=ids.device)
        mask[:, :longest] = places >= 0
        self._mask, self._column = mask, longest
        logits = self._forward(left, places.clamp(min=0))
        self._positions = lengths
        return logits

    def repeat(self, source: Tensor, target: Tensor) -> None:
        rows = torch.arange(max(len(self._mask), int(target.max()) + 1), device=source.device)
        rows[target] = source
        self._select(rows)

    def step(self, tokens: Tensor) -> Tensor:
        self._column += 1
        if self._column > self._mask.shape[1]:
            self._mask = torch.nn.functional.pad(self._mask, (0, self._column), value=1)
        logits = self._forward(tokens.unsqueeze(1), self._positions.unsqueeze(1))
        self._positions = self._positions + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        self._select(rows)
        self._rows = len(rows)

    def _select(self, rows: Tensor) -> None:
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        self._cache.reorder_cache(rows)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        given: dict[str, Any] = {self._cache_name: self._cache, **self._last_only}
        if self._takes_positions:
            given["position_ids"] = positions
        # A state has no columns left to mask once the prompt is read.
        if self._cache is None or self._cache_name == "past_key_values":
            given["attention_mask"] = self._mask[:, : self._column]
        output = self.model(input_ids=ids, use_cache=True, **given)
        if self._cache is None:
            self._cache = getattr(output, self._cache_name)
            layers = self._cache.layers
            for index, layer in enumerate(layers):
                if type(layer) is DynamicLayer and layer.is_initialized:
                    layers[index] = GrowingLayer(layer, self._capacity)
        logits: Tensor = output.logits[:, -1]
        return logits


def _at_the_end(call: Callable[[Tensor], Tensor]) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook before the head that changes the last position of (B, T, H), whose logits alone are read."""

    def hook(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0].clone()
        hidden[:, -1] = call(hidden[:, -1])
        return (hidden, *arguments[1:])

    return hook
