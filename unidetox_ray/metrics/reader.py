"""Reading token sequences with a Hugging Face causal LM: shared prefixes once, the head only where it is asked.

A `Reader` gives hidden states; `nll` turns those that matter into likelihoods, a few rows of logits at a time. What
was read can be kept as a `Past`, which any number of continuations then share without a copy of it per batch.
Sequences are padded on the right at every level; masks leave the gaps out and positions are counted without them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

#: Relative difference up to which the cached reading counts as the same as the whole one: by weights' dtype.
_SAME = {torch.float64: 1e-6, torch.float32: 1e-3}
_SAME_HALF = 0.1
#: What a model raises that does not take what it is given here.
_BUILT_OTHERWISE = (
    TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Past:
    """P sequences that were read. layers: keys and values (P, heads, L, D) each; lengths (P,); mask (P, L) int64 with
    1 at tokens; last (P, H): the hidden state at each sequence's last token."""

    layers: list[tuple[Tensor, Tensor]]
    lengths: Tensor
    mask: Tensor
    last: Tensor


class _SharedLayer(DynamicLayer):
    """Keys and values of shared prefixes: every call sees its rows' prefix before its own, and nothing grows."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, keep: bool) -> None:
        super().__init__()
        self.keys, self.values, self.rows, self.keep = keys, values, rows, keep
        self._shared = (keys, values)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.joined: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        joined = (self._join(self._shared[0], key_states), self._join(self._shared[1], value_states))
        if self.keep:
            self.joined = joined
        return joined

    def _join(self, before: Tensor, new: Tensor) -> Tensor:
        mine = before.expand(len(self.rows), -1, -1, -1) if len(before) == 1 else before[self.rows]
        return torch.cat([mine, new], dim=-2)


class Reader:
    """`shares`: whether pasts can be used, else `why_not` says what prevents it. `splits`: whether the head runs apart.

    Both are found out on a few ids: prefix and continuation against the whole, head on hidden states against logits.
    A model of which neither holds is read whole, and its logits are its hidden states.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = next(model.parameters()).device
        self.why_not: str | None = None
        self._body, self._head = model, _same
        self._takes: frozenset[str] = frozenset(inspect.signature(model.forward).parameters)
        with torch.inference_mode():
            self.splits = self._split()

    @cached_property
    def shares(self) -> bool:
        with torch.inference_mode():
            return self._check()

    def read(
        self,
        ids: Sequence[Sequence[int]],
        past: Past | None = None,
        rows: Sequence[int] = (),
        *,
        keep: bool = False,
    ) -> tuple[Tensor, Past | None]:
        """Hidden states (B, T, H) at `ids` (B sequences, T the longest's length; at least one id in all), after the
        rows `rows` of `past`; and what was read in all, where `keep`. Beyond a sequence's end they mean nothing."""
        lengths = torch.tensor([len(row) for row in ids])
        longest = int(lengths.max())
        # Behind a sequence's end any id of the vocabulary serves: nothing before it looks there.
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids]).to(self.device)
        mask = (torch.arange(longest) < lengths[:, None]).long().to(self.device)
        lengths = lengths.to(self.device)
        if past is None:
            if not keep:
                return self._run(padded), None
            cache: Any = DynamicCache(config=self.model.config)
            hidden = self._run(padded, past_key_values=cache, use_cache=True)
            layers = [(layer.keys, layer.values) for layer in cache.layers]
            return hidden, Past(
                layers, lengths, mask, hidden[torch.arange(len(ids)), (lengths - 1).clamp(min=0)]
            )
        where = torch.tensor(rows, device=self.device)
        before, whole = past.lengths[where], torch.cat([past.mask[where], mask], dim=1)
        shared = [_SharedLayer(keys, values, where, keep) for keys, values in past.layers]
        cache = DynamicCache()
        cache.layers = list(shared)
        extra: dict[str, Any] = {"past_key_values": cache, "use_cache": True, "attention_mask": whole}
        if "position_ids" in self._takes:
            # Behind its end a row stays at its last position: further ones may be more than the model has.
            places = torch.arange(longest, device=self.device).minimum((lengths - 1).clamp(min=0)[:, None])
            extra["position_ids"] = before[:, None] + places
        hidden = self._run(padded, **extra)
        if not keep:
            return hidden, None
        joined = [layer.joined for layer in shared]
        last = hidden[torch.arange(len(ids)), (lengths - 1).clamp(min=0)]
        last = torch.where((lengths > 0)[:, None], last, past.last[where])
        return hidden, Past([pair for pair in joined if pair is not None], before + lengths, whole, last)

    def nll(self, hidden: Tensor, where: Tensor, targets: Tensor, chunk_values: int) -> Tensor:
        """-log p(targets[m]) after hidden[where[m]]: hidden (N, H), where and targets (M,) int64 -> (M,) float32.

        A hidden state that is asked for several targets goes through the head once. At most `chunk_values` logits
        are in memory at a time; they are float32 whatever the model's dtype.
        """
        rows, of = torch.unique(where, return_inverse=True)
        order = of.argsort(stable=True)
        sorted_of, sorted_targets = of[order], targets[order]
        width = getattr(getattr(self._head, "weight", hidden), "shape", hidden.shape)
        size = max(1, chunk_values // int(width[0] if self.splits else hidden.shape[-1]))
        found = torch.empty(len(where), dtype=torch.float32, device=hidden.device)
        edges = torch.searchsorted(
            sorted_of, torch.arange(0, len(rows) + size, size, device=of.device)
        ).tolist()
        for index, chunk in enumerate(rows.split(size)):
            logits = self._head(hidden[chunk]).float()
            mine = slice(edges[index], edges[index + 1])
            at = sorted_of[mine] - index * size
            found[order[mine]] = logits.logsumexp(dim=-1)[at] - logits[at, sorted_targets[mine]]
        return found

    def _run(self, ids: Tensor, **extra: Any) -> Tensor:
        if "use_cache" in self._takes:
            extra.setdefault("use_cache", False)
        output = self._body(input_ids=ids, **extra)
        hidden: Tensor = output.last_hidden_state if self.splits else output.logits
        return hidden

    def _split(self) -> bool:
        """Find body and head; they must give the model's own logits together (some models scale or cap them)."""
        find = getattr(self.model, "get_output_embeddings", None)
        head, body = find() if find is not None else None, getattr(self.model, "base_model", None)
        if head is None or body is None or body is self.model or getattr(head, "weight", None) is None:
            return False
        try:
            ids = self._ids(5)
            made, wanted = head(body(input_ids=ids).last_hidden_state), self.model(input_ids=ids).logits
        except _BUILT_OTHERWISE:
            return False
        if not _close(made, wanted):
            return False
        self._body, self._head = body, head
        self._takes = frozenset(inspect.signature(body.forward).parameters)
        return True

    def _check(self) -> bool:
        """Two sequences read in two parts with gaps between them against the same read whole."""
        if not {"past_key_values", "attention_mask", "use_cache"} <= self._takes:
            self.why_not = "its forward takes no cache"
            return False
        try:
            ids = self._ids(6)[0].tolist()
            parts = [(ids[:4], ids[4:]), (ids[1:2], ids[2:5])]
            cache = DynamicCache(config=self.model.config)
            self._run(torch.tensor([ids], device=self.device), past_key_values=cache, use_cache=True)
            if any(type(layer) is not DynamicLayer for layer in cache.layers):
                self.why_not = "its layers keep more or less than keys and values of all positions"
                return False
            _, past = self.read([first for first, _ in parts], keep=True)
            hidden, _ = self.read([second for _, second in parts], past, [0, 1])
        except _BUILT_OTHERWISE as error:
            self.why_not = f"its cache cannot be shared ({type(error).__name__}: {error})"
            return False
        for row, (first, second) in enumerate(parts):
            whole, _ = self.read([first + second])
            if not _close(hidden[row, : len(second)], whole[0, len(first) :]):
                self.why_not = "with a shared cache it gives other values"
                return False
        return True

    def _ids(self, length: int) -> Tensor:
        config = self.model.config
        vocab = int(getattr(config, "vocab_size", 0) or config.get_text_config().vocab_size)
        return torch.tensor([[(31 * i + 7) % vocab for i in range(length)]], device=self.device)


def _same(hidden: Tensor) -> Tensor:
    return hidden


def _close(one: Tensor, other: Tensor) -> bool:
    """Values that are not finite are unequal to everything."""
    if one.shape != other.shape:
        return False
    allowed = _SAME.get(other.dtype, _SAME_HALF)
    return bool((one.double() - other.double()).norm() <= allowed * other.double().norm())
