"""The lean decoder on the CPU in float32 and float64: as few calls a step as possible, rows bit for bit independent.

Independence (float32, packed products): the same ids give a row the same bits whatever the number and order of rows,
its neighbours' ids and lengths, and the number of threads. What it rests on, all measured (AMD Zen 5, torch 2.13) and
tested in `tests/core/test_lean.py`:
- products over 16 rows and more, so rows are padded (`rows_padded`), to few different numbers, because oneDNN compiles
  a kernel for each (some milliseconds);
- attention as `core/attention.py` does it;
- element by element only operations that round once (a fused multiply-add rounds differently at vector ends).

Letters: B rows, R rows of one call, T positions, N = R T, Hq, Hkv query and key heads, G = Hq / Hkv, D head size,
C room of the cache, L key length of this call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unidetox_ray.core import attention, ops
from unidetox_ray.core.decoder import Block, Decoder, Norm
from unidetox_ray.core.kv import Rows, StaticCache, part_of
from unidetox_ray.core.linear import Ordinary, Packed, fingerprint, packing_works

#: Prompts are read in pieces of at most so many positions.
_PIECE = 4096
_NEVER = float("-inf")


def rows_padded(rows: int) -> int:
    """The next row count that is computed: multiples of 16, then at most eight different ones an octave."""
    step = max(16, 1 << max(0, (rows - 1).bit_length() - 4))
    return max(16, -(-rows // step) * step)


class _Layer:
    """A block with its weights made ready."""

    def __init__(self, block: Block, linear: type[Packed] | type[Ordinary], order: Tensor | None) -> None:
        self.block = block
        self.qkv = linear(block.qkv, order)
        self.out = linear(block.out)
        self.up = linear(block.up)
        self.gate = None if block.gate is None else linear(block.gate)
        self.down = linear(block.down)


class CpuForward:
    """See `core.lean.Forward`."""

    def __init__(self) -> None:
        self.bucket = 16
        self._print: list[tuple[int, int, int]] | None = None
        self._layers: list[_Layer] = []

    def prepare(self, decoder: Decoder) -> None:
        """Pack the weights, unless those packed last time are still the model's."""
        packs = decoder.dtype == torch.float32 and packing_works()
        printed = fingerprint(tensor for matrix in decoder.matrices() for tensor in matrix.tensors())
        self._decoder = decoder
        if printed != self._print or len(self._layers) != len(decoder.blocks):
            linear: type[Packed] | type[Ordinary] = Packed if packs else Ordinary
            order = decoder.standard_order()
            self._layers = []
            self._layers = [_Layer(block, linear, order) for block in decoder.blocks]
            self._head = linear(decoder.head)
            self._print = printed
        else:
            for layer, block in zip(self._layers, decoder.blocks, strict=True):
                layer.block = block
        self.bucket, self._block = attention.sizes(decoder.group, decoder.head_size)

    def total_rows(self, rows: int) -> int:
        return rows_padded(rows)

    def opened(self, cache: StaticCache) -> None:
        decoder = self._decoder
        self._cache = cache
        self._positions = torch.arange(cache.room)
        # A padded prompt may be wider than the model's positions; what is looked up there is never used.
        self._known = self._positions.clamp(max=cache.capacity - 1)
        self._cos, self._sin = None, None
        if decoder.rotary is not None:
            cos, sin = decoder.rotary.table(self._known, decoder.dtype)
            half = sin.shape[-1] // 2
            # The halves are swapped by a roll, so the sign of rotate-half goes into the sine.
            self._cos, self._sin = cos[:, None], torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)[:, None]
        self._bias = None
        if decoder.slopes is not None:
            scale = decoder.blocks[0].scale
            self._bias = ops.alibi(decoder.slopes, self._positions, scale, decoder.dtype)
        self._stale, self._length = True, 0

    def closed(self) -> None:
        for name in ("_cache", "_views", "_whole_mask", "_mask", "_mask_flat"):
            vars(self).pop(name, None)

    def moved(self) -> None:
        self._stale = True

    def head(self, hidden: Tensor) -> Tensor:
        rows = hidden.shape[0]
        if rows != rows_padded(rows):
            hidden = torch.cat([hidden, hidden.new_zeros(rows_padded(rows) - rows, hidden.shape[1])])
        return self._head(hidden)[:rows]

    # One step

    def step(self, tokens: Tensor, longest: int) -> Tensor:
        cache = self._cache
        overflows = int(cache.host.max()) >= cache.capacity
        if self._stale or overflows or longest != self._length:
            self._aim(longest)
        if tokens.shape[0] < cache.rows:
            self._tokens[: tokens.shape[0]] = tokens
            tokens = self._tokens
        if self._bias is None:
            self._mask_flat.index_fill_(0, self._mask_index, 0.0)
        else:
            self._mask_flat.index_copy_(0, self._mask_index, self._bias.t()[self._now].flatten())
        cos = sin = None
        if self._cos is not None and self._sin is not None:
            cos, sin = self._cos[self._now], self._sin[self._now]
        x = self._embedded(tokens, self._now)
        size = cache.head_size
        for index, layer in enumerate(self._layers):
            normed = self._norm(x, layer.block.norm)
            qkv = layer.qkv(normed)
            if cos is not None and sin is not None:
                self._rotate(qkv, cos, sin)
            cache.flat[index].index_copy_(0, self._index, qkv.view(-1, size))
            queries, keys, values = self._views[index]
            scores = torch.baddbmm(self._mask, queries, keys, alpha=layer.block.scale)
            mixed = attention.sum_values(torch.softmax(scores, -1), values)
            x = self._rest(layer, x, normed, layer.out(mixed.view(x.shape[0], -1)))
        self._state.add_(self._ahead)
        cache.lengths.add_(1)
        return self._norm(x, self._decoder.final)

    def _aim(self, longest: int) -> None:
        """Where the next step writes and what it sees; needed after rows moved and when the key length grows."""
        cache, decoder = self._cache, self._decoder
        rows, groups, heads, room = cache.rows, cache.kv_heads, cache.heads, cache.room
        positions = cache.lengths.clamp(max=cache.capacity - 1)
        if longest != self._length or self._stale:
            self._views = []
            for layer in range(len(self._layers)):
                keys = cache.keys(layer).flatten(0, 1)[:, :longest].transpose(1, 2)
                values = cache.values(layer).flatten(0, 1)
                parts = [
                    values[:, at : min(at + self._block, longest)] for at in range(0, longest, self._block)
                ]
                self._views.append((cache.queries(layer), keys, parts))
        if self._stale:
            valid = (self._positions < positions[:, None])[:, None]  # (B, 1, C)
            if self._bias is None:
                mask = torch.where(valid, 0.0, _NEVER).to(decoder.dtype).expand(rows, groups, room)
            else:
                mask = torch.where(valid, self._bias, _NEVER)
            self._whole_mask = mask.reshape(rows * groups, -1, room).clone()
            self._mask_flat = self._whole_mask.view(-1)
            self._tokens = torch.zeros(rows, dtype=torch.long)
        self._mask = self._whole_mask[:, :, :longest]
        columns = groups if self._bias is None else heads
        row = torch.arange(rows)[:, None]
        key = (row * groups + torch.arange(groups)) * room + positions[:, None]
        region = cache.allocated * groups * room
        query = 2 * region + row * heads + torch.arange(heads)
        seen = (row * columns + torch.arange(columns)) * room + positions[:, None]
        index = torch.cat([query, key, key + region], dim=1).flatten()
        self._state = torch.cat([index, seen.flatten(), positions])
        moves = torch.cat([torch.zeros_like(query), torch.ones_like(key), torch.ones_like(key)], dim=1)
        self._ahead = torch.ones_like(self._state)
        self._ahead[: index.numel()] = moves.flatten()
        self._index, self._mask_index, self._now = torch.split(
            self._state, [index.numel(), seen.numel(), rows]
        )
        self._stale, self._length = False, longest

    # A prompt

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Rows) -> Tensor:
        count = max(1, _PIECE // ids.shape[1])
        pieces = [slice(at, at + count) for at in range(0, ids.shape[0], count)]
        return torch.cat(
            [self._read(ids[at], lengths[at], part_of(rows, at.start, at.stop)) for at in pieces]
        )

    def _read(self, ids: Tensor, lengths: Tensor, rows: Rows) -> Tensor:
        """Products see only the prompts' own positions, one after another; attention sees the padded rectangle."""
        cache = self._cache
        count, width = ids.shape
        places = (self._positions[:width] < lengths[:, None]).flatten().nonzero().squeeze(1)
        used = places.numel()
        gathered = torch.cat([places, places.new_zeros(rows_padded(used) - used)])
        ends = lengths.cumsum(0) - 1
        last = torch.cat([ends, ends.new_zeros(rows_padded(count) - count)])
        positions = self._known[gathered % width]
        cos = sin = None
        if self._cos is not None and self._sin is not None:
            cos, sin = self._cos[positions], self._sin[positions]
        x = self._embedded(ids.flatten()[gathered], positions)
        groups, heads, size = cache.kv_heads, cache.heads, cache.head_size
        for index, layer in enumerate(self._layers):
            normed = self._norm(x, layer.block.norm)
            qkv = layer.qkv(normed)
            if cos is not None and sin is not None:
                self._rotate(qkv, cos, sin)
            spread = qkv.new_zeros(count * width, qkv.shape[1]).index_copy_(0, places, qkv[:used])
            parts = spread.view(count, width, -1, size).transpose(1, 2)  # (R, Hq + 2 Hkv, T, D)
            cache.fill(index, rows, parts[:, heads : heads + groups], parts[:, heads + groups :])
            keys, values = cache.keys(index)[rows, :, :width], cache.values(index)[rows, :, :width]
            mixed = attention.causal(
                parts[:, :heads], keys, values, layer.block.scale, self._bias, self._block
            )
            if index + 1 < len(self._layers):
                mixed = mixed[gathered]
            else:  # what follows is needed for the last tokens only
                x, normed, mixed = x[last], normed[last], mixed[gathered[last]]
            x = self._rest(layer, x, normed, layer.out(mixed))
        return self._norm(x[:count], self._decoder.final)

    # Both

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        decoder = self._decoder
        x = torch.embedding(decoder.embedding, tokens)
        if decoder.positions is not None:
            table = decoder.positions[decoder.offset :] if decoder.offset else decoder.positions
            x.add_(torch.embedding(table, positions))
        return x

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        if self._decoder.norm_kind == "layer":
            return torch.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.eps)
        if x.dtype == torch.float32:
            return torch.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)
        return ops.add_norm(x, None, norm.weight, norm.bias, norm.eps, "rms")[0]

    def _rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Rotate queries and keys in place. qkv: (N, (Hq + 2 Hkv) D). cos, sin: (N, 1, D)."""
        cache = self._cache
        turning = qkv.view(qkv.shape[0], -1, cache.head_size)[:, : cache.heads + cache.kv_heads]
        swapped = turning.roll(cache.head_size // 2, 2).mul_(sin)
        turning.mul_(cos).add_(swapped)

    def _rest(self, layer: _Layer, x: Tensor, normed: Tensor, attended: Tensor) -> Tensor:
        """The layer's output from its input x, the input's norm and the attention's result."""
        norm_mlp = layer.block.norm_mlp
        if not self._decoder.parallel:
            x = attended.add_(x)
        if norm_mlp is not None:
            normed = self._norm(x, norm_mlp)
        activation = self._decoder.activation
        if layer.gate is None:
            fed = layer.down(layer.up(normed, activation))
        else:
            fed = layer.down(layer.gate(normed, activation).mul_(layer.up(normed)))
        if self._decoder.parallel:
            fed.add_(attended)
        return fed.add_(x)
