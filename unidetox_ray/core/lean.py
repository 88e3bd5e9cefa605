"""A hand-written forward of pre-norm decoders with a static cache: the fast `Runner` (`core/runner.py`).

`LeanRunner` keeps the books (rows, lengths, stale weights, the hook); the arithmetic is one of two forwards:
`core/lean_cpu.py` for float32 and float64 on the CPU, whose rows are bit for bit independent of each other, and
`core/lean_ops.py` for CUDA and for half precision, written in `core/ops.py`.

Letters: B open rows, R rows of one call, T positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from unidetox_ray.core.decoder import Decoder
from unidetox_ray.core.kv import Rows, StaticCache, as_run
from unidetox_ray.core.lean_cpu import CpuForward
from unidetox_ray.core.lean_ops import OpsForward
from unidetox_ray.core.memory import Shape, shape_of
from unidetox_ray.errors import ModelError


class Forward(Protocol):
    """The arithmetic of a decoder over a `StaticCache`."""

    #: Key lengths are multiples of this, and so is the room of the cache.
    bucket: int

    def prepare(self, decoder: Decoder) -> None:
        """Take over the model's weights as they are now."""

    def total_rows(self, rows: int) -> int:
        """How many rows the cache needs so that `rows` can be stepped."""

    def opened(self, cache: StaticCache) -> None:
        """Work on this cache from now on."""

    def closed(self) -> None:
        """Let go of the cache."""

    def moved(self) -> None:
        """Rows of the cache were filled, copied or dropped."""

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Rows) -> Tensor:
        """Fill rows of the cache; (R, H) after the final norm, at each prompt's last token."""

    def step(self, tokens: Tensor, longest: int) -> Tensor:
        """One position more for (B,) tokens: (B, H) after the final norm; advances the lengths on the device."""

    def head(self, hidden: Tensor) -> Tensor:
        """(N, H) -> (N, V)."""


class LeanRunner:
    """The `Runner` protocol for a decoder that a reader in `families/` understands.

    read: gives the model's weights as they are now; asked at each `open`, so that training, moving or replacing them
    between two decodes shows. Weights must not change between `open` and the last `step`.
    ops: stand-in for `core.ops` with the same functions (`core.kernels`); None: `core.ops` itself.
    through_ops: compute through `ops` even where the CPU's own forward would be chosen (tests).
    """

    refills = True

    def __init__(self, read: Callable[[], Decoder], *, ops: Any = None, through_ops: bool = False) -> None:
        self._read = read
        decoder = read()
        self.vocab, self.device, self.dtype = decoder.vocab, decoder.device, decoder.dtype
        #: How many positions the model knows; None: any number.
        self.max_positions = decoder.max_positions
        #: On CUDA rows keep their places, because a captured graph has fixed shapes.
        self.shrinks = decoder.device.type == "cpu"
        self._ops, self._through_ops = ops, through_ops
        self._forward: Forward | None = None
        self._cache: StaticCache | None = None
        self._rows = 0
        self.on_hidden: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def open(self, rows: int, capacity: int) -> None:
        """See `Runner`. ModelError when the capacity is more than the model's learned positions."""
        decoder = self._read()
        if decoder.max_positions is not None and capacity > decoder.max_positions:
            raise ModelError(
                f"{capacity} positions are asked for, but the model knows {decoder.max_positions}; "
                "shorten the prompts or max_new_tokens"
            )
        if self._forward is None or (decoder.device, decoder.dtype) != (self.device, self.dtype):
            self._forward = self._forward_for(decoder)
        self.vocab, self.device, self.dtype = decoder.vocab, decoder.device, decoder.dtype
        self._forward.prepare(decoder)
        bucket = self._forward.bucket
        self._rows = rows
        self.empty()  # let go of the old cache before the new one is allocated
        self._cache = StaticCache(
            layers=len(decoder.blocks),
            rows=self._forward.total_rows(rows),
            capacity=capacity,
            room=-(-capacity // bucket) * bucket,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_size=decoder.head_size,
            dtype=decoder.dtype,
            device=decoder.device,
        )
        self._forward.opened(self._cache)

    @torch.inference_mode()
    def prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        """See `Runner`."""
        forward, cache = self._open()
        host_rows, host_lengths = rows.cpu().numpy(), lengths.cpu().numpy()
        longest = int(host_lengths.max())
        if longest > cache.capacity:
            raise ValueError(f"a prompt has {longest} ids, the cache was opened for {cache.capacity}")
        run = as_run(rows, host_rows)
        cache.begin(run, lengths, host_rows, host_lengths)
        # Rows beyond those that are open grow with every step for nothing.
        cache.lengths[self._rows :] = 0
        cache.host[self._rows :] = 0
        width = -(-longest // forward.bucket) * forward.bucket
        padded = torch.zeros((ids.shape[0], width), dtype=torch.long, device=ids.device)
        padded[:, :longest] = ids[:, :longest]
        hidden = forward.prefill(padded, lengths, run)
        forward.moved()
        return self._logits(hidden, ids.shape[0])

    @torch.inference_mode()
    def repeat(self, source: Tensor, target: Tensor) -> None:
        """See `Runner`."""
        forward, cache = self._open()
        cache.repeat(source, target)
        forward.moved()

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Runner`."""
        hidden = self.compute(tokens, self.bound())
        self.advanced()
        return hidden

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """See `Runner`."""
        forward, cache = self._open()
        self._rows = rows.shape[0]
        cache.keep(rows, forward.total_rows(self._rows))
        forward.moved()

    def shape(self) -> Shape:
        """What of the model decides the memory of a row."""
        return shape_of(self._read())

    def empty(self) -> None:
        """Let go of the caches but keep packed weights, which the next `open` uses again if they are current."""
        self._cache = None
        if self._forward is not None:
            self._forward.closed()

    def close(self) -> None:
        """See `Runner`. Packed weights go as well."""
        self._cache = self._forward = None

    def bound(self) -> int:
        """The `longest` of the next `compute`: a host-side multiple of 16 that no row's length after it exceeds."""
        forward, cache = self._open()
        needed = min(cache.longest() + 1, cache.capacity)
        return -(-needed // forward.bucket) * forward.bucket

    def compute(self, tokens: Tensor, longest: int) -> Tensor:
        """The device's part of a step, which a CUDA graph may capture: no host sync, lengths advance in place.

        tokens: (B,) int64. longest: at least `bound()`. Returns (B, V). `advanced` must follow each execution.
        """
        forward, _ = self._open()
        return self._logits(forward.step(tokens, longest), self._rows)

    def advanced(self) -> None:
        """The host's part of a step: every row is one position longer."""
        _, cache = self._open()
        cache.host += 1

    def _logits(self, hidden: Tensor, rows: int) -> Tensor:
        forward, _ = self._open()
        if self.on_hidden is not None:
            # The forward may carry rows beyond those that are open; the hook sees only these.
            changed = self.on_hidden(hidden[:rows])
            hidden = hidden.clone()
            hidden[:rows] = changed
        return forward.head(hidden)[:rows]

    def _forward_for(self, decoder: Decoder) -> Forward:
        full = decoder.dtype in (torch.float32, torch.float64)
        if decoder.device.type == "cpu" and full and not self._through_ops:
            return CpuForward()
        return OpsForward() if self._ops is None else OpsForward(self._ops)

    def _open(self) -> tuple[Forward, StaticCache]:
        if self._forward is None or self._cache is None:
            raise RuntimeError("the runner is closed; call open() first")
        return self._forward, self._cache
