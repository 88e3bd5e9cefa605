"""The lean decoder's cache: allocated once, each row with a length of its own, filled from index 0.

A row's keys lie at 0..length-1 whatever its neighbours hold, so a row's numbers do not depend on them; prompts are
read right-padded and what the padding left behind is masked until it is overwritten.

Letters: B rows, Hkv key heads, Hq query heads, C positions, D head size, T positions of one call.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Rows by number, (K,) int64, or as a run.
Rows = Tensor | slice


def as_run(rows: Tensor, host_rows: np.ndarray) -> Rows:
    """The rows as a slice where they follow one another, which saves gathering and scattering."""
    first, last = int(host_rows[0]), int(host_rows[-1])
    following = np.array_equal(host_rows, np.arange(first, last + 1))
    return slice(first, last + 1) if following else rows


def part_of(rows: Rows, start: int, stop: int) -> Rows:
    """rows[start:stop] of either kind."""
    if isinstance(rows, Tensor):
        return rows[start:stop]
    return slice(rows.start + start, min(rows.start + stop, rows.stop))


class StaticCache:
    """Keys and values of all layers, and how long each row is, on the device and on the host.

    One flat (2 B Hkv C + B Hq, D) tensor a layer holds keys, values and, behind them, room for the current queries, so
    that the CPU can store a step's queries, keys and values with one call.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        capacity: int,
        room: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """capacity: valid positions a row may have. room: allocated positions, >= capacity."""
        self.rows, self.capacity, self.room = rows, capacity, room
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size
        #: Rows that were allocated; `keep` lowers `rows` and leaves the tensors as they are.
        self.allocated = rows
        count = 2 * rows * kv_heads * room + rows * heads
        self.flat = [torch.zeros(count, head_size, dtype=dtype, device=device) for _ in range(layers)]
        #: (B,) int64 valid positions of every row, on the device; a step advances it in place.
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        #: The same on the host, so that nothing waits for the device.
        self.host = np.zeros(rows, dtype=np.int64)
        self._used = np.zeros(rows, dtype=bool)

    def keys(self, layer: int) -> Tensor:
        """(B, Hkv, C, D) view, contiguous."""
        return self._part(layer, 0)

    def values(self, layer: int) -> Tensor:
        """(B, Hkv, C, D) view, contiguous."""
        return self._part(layer, 1)

    def queries(self, layer: int) -> Tensor:
        """(B Hkv, Hq / Hkv, D) view, contiguous: where the CPU leaves a step's queries."""
        start = 2 * self.allocated * self.kv_heads * self.room
        count = self.rows * self.heads
        group = self.heads // self.kv_heads
        return self.flat[layer][start : start + count].view(-1, group, self.head_size)

    def longest(self) -> int:
        """The longest row's length, at most the capacity."""
        return min(int(self.host.max()), self.capacity)

    def begin(self, rows: Rows, lengths: Tensor, host_rows: np.ndarray, host_lengths: np.ndarray) -> None:
        """Empty rows that were used and give them their new lengths; `fill` then writes the layers."""
        if self._used[host_rows].any():
            for layer in range(len(self.flat)):
                self._wipe(layer, rows)
        self._used[host_rows] = True
        self.lengths[rows] = lengths
        self.host[host_rows] = host_lengths

    def fill(self, layer: int, rows: Rows, keys: Tensor, values: Tensor) -> None:
        """Positions 0..T-1 of some rows. keys, values: (R, Hkv, T, D), any strides."""
        size = keys.shape[2]
        self.keys(layer)[rows, :, :size] = keys
        self.values(layer)[rows, :, :size] = values

    def repeat(self, source: Tensor, target: Tensor) -> None:
        """Rows `target` become copies of rows `source`, (K,) int64 each; only valid positions are copied."""
        host_source, host_target = source.cpu().numpy(), target.cpu().numpy()
        size = min(int(self.host[host_source].max()), self.room)
        lengths, host = self.lengths[source], self.host[host_source]
        run, used = as_run(target, host_target), bool(self._used[host_target].any())
        for layer in range(len(self.flat)):
            keys, values = self.keys(layer)[source, :, :size], self.values(layer)[source, :, :size]
            if used:
                self._wipe(layer, run)
            self.fill(layer, run, keys, values)
        self._used[host_target] = True
        self.lengths[target] = lengths
        self.host[host_target] = host

    def keep(self, rows: Tensor, total: int) -> None:
        """Forget all rows but `rows` (K,) int64 ascending; `total` >= K rows stay, the last ones empty."""
        count = rows.shape[0]
        host_rows = rows.cpu().numpy()
        size = min(int(self.host[host_rows].max(initial=0)), self.room)
        for layer in range(len(self.flat)):
            for part in (self.keys(layer), self.values(layer)):
                part[:count, :, :size] = part[rows, :, :size]
                part[:count, :, size:].zero_()  # see `_wipe`: the rows that were here before may be broken
        self.lengths[:count] = self.lengths[rows]
        self.lengths[count:total] = 0
        self.host[:count] = self.host[host_rows]
        self.host[count:total] = 0
        self._used[:] = True
        self.rows, self.lengths = total, self.lengths[:total]
        self.host, self._used = self.host[:total], self._used[:total]

    def _wipe(self, layer: int, rows: Rows) -> None:
        # Masked keys are multiplied by zero, and zero times infinity is no zero: one broken text must not reach
        # the row's next one. A fresh cache holds zeros already.
        for part in (self.keys(layer), self.values(layer)):
            if isinstance(rows, Tensor):
                part.index_fill_(0, rows, 0)
            else:
                part[rows].zero_()

    def _part(self, layer: int, which: int) -> Tensor:
        start = which * self.allocated * self.kv_heads * self.room
        count = self.rows * self.kv_heads * self.room
        return self.flat[layer][start : start + count].view(-1, self.kv_heads, self.room, self.head_size)
