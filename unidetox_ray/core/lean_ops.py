"""The lean decoder written in `core/ops.py`: on CUDA, and anywhere in bfloat16 and float16.

No copies of the weights: products read the model's own tensors. A step neither waits for the device nor allocates by
what it finds there, so it may be captured in a CUDA graph; rows are not promised to be independent bit for bit.

Letters: B rows, R rows of one call, T positions, N = R T, Hq, Hkv query and key heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unidetox_ray.core import ops as plain_ops
from unidetox_ray.core.decoder import Block, Decoder
from unidetox_ray.core.kv import Rows, StaticCache, part_of
from unidetox_ray.core.linear import Ordinary

#: Prompts are read in pieces of at most so many positions.
_PIECE = 16384


class _Layer:
    def __init__(self, block: Block) -> None:
        self.block = block
        block.qkv.put_together()
        self.qkv, self.out, self.down = Ordinary(block.qkv), Ordinary(block.out), Ordinary(block.down)
        self.up, self.gate = Ordinary(block.up), None if block.gate is None else Ordinary(block.gate)


class OpsForward:
    """See `core.lean.Forward`. ops: a module with the functions of `core.ops`."""

    bucket = 16

    def __init__(self, ops: Any = plain_ops) -> None:
        self.ops = ops

    def prepare(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._layers = [_Layer(block) for block in decoder.blocks]
        self._head = Ordinary(decoder.head)

    def total_rows(self, rows: int) -> int:
        return rows

    def opened(self, cache: StaticCache) -> None:
        self._cache = cache
        self._known = torch.arange(cache.room, device=self._decoder.device).clamp(max=cache.capacity - 1)
        self._table = None
        if self._decoder.rotary is not None:
            self._table = self._decoder.rotary.table(self._known, self._decoder.dtype)

    def closed(self) -> None:
        vars(self).pop("_cache", None)

    def moved(self) -> None:
        """Everything is read from the cache at each step."""

    def head(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)

    def step(self, tokens: Tensor, longest: int) -> Tensor:
        cache = self._cache
        positions = cache.lengths.clamp(max=cache.capacity - 1)
        lengths = positions + 1
        x = self._embedded(tokens, positions)
        turn = self._turn(positions)
        # The kernels rotate and write in one launch.
        at_once = turn is not None and hasattr(self.ops, "rotate_write")
        for index, layer in enumerate(self._layers):
            if index == 0:
                normed, x = self._norm(None, x, layer.block.norm)
            key_cache, value_cache = cache.keys(index), cache.values(index)
            queries, keys, values = self._split(layer, normed, None if at_once else turn)
            if at_once and turn is not None:
                queries = self.ops.rotate_write(
                    queries, keys, values, *turn, key_cache, value_cache, positions
                )
            else:
                self.ops.write(keys, values, key_cache, value_cache, positions)
            mixed = self.ops.attend(
                queries,
                key_cache,
                value_cache,
                lengths,
                layer.block.scale,
                self._decoder.slopes,
                longest,
            )
            normed, x = self._rest(index, x, normed, layer.out(mixed.reshape(x.shape[0], -1)))
        cache.lengths.add_(1)
        return normed

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Rows) -> Tensor:
        count = max(1, _PIECE // ids.shape[1])
        pieces = [slice(at, at + count) for at in range(0, ids.shape[0], count)]
        return torch.cat(
            [self._read(ids[at], lengths[at], part_of(rows, at.start, at.stop)) for at in pieces]
        )

    def _read(self, ids: Tensor, lengths: Tensor, rows: Rows) -> Tensor:
        count, width = ids.shape
        positions = self._known[:width].repeat(count)
        x = self._embedded(ids.flatten(), positions)
        turn = self._turn(positions)
        for index, layer in enumerate(self._layers):
            if index == 0:
                normed, x = self._norm(None, x, layer.block.norm)
            queries, keys, values = (
                part.reshape(count, width, -1, part.shape[-1]).transpose(1, 2)
                for part in self._split(layer, normed, turn)
            )
            self._cache.fill(index, rows, keys, values)
            mixed = self._attend(queries, keys, values, layer.block.scale)
            mixed = mixed.transpose(1, 2).reshape(count * width, -1)
            normed, x = self._rest(index, x, normed, layer.out(mixed))
        return normed.view(count, width, -1)[torch.arange(count, device=ids.device), lengths - 1]

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Causal attention of whole prompts. (R, Hq, T, D) and (R, Hkv, T, D) -> (R, Hq, T, D)."""
        grouped, slopes = queries.shape[1] != keys.shape[1], self._decoder.slopes
        if slopes is None:
            return F.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=scale, enable_gqa=grouped
            )
        width = queries.shape[2]
        positions = torch.arange(width, device=queries.device)
        bias = plain_ops.alibi(slopes, positions, scale, queries.dtype)[:, None]
        mask = torch.where(positions <= positions[:, None], bias, float("-inf"))[None]
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped
        )

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        decoder = self._decoder
        x = F.embedding(tokens, decoder.embedding)
        if decoder.positions is not None:
            x = x + F.embedding(positions + decoder.offset, decoder.positions)
        return x

    def _turn(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        return None if self._table is None else (self._table[0][positions], self._table[1][positions])

    def _split(
        self, layer: _Layer, normed: Tensor, turn: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, Hq, D), keys and values (N, Hkv, D), rotated where the model does that."""
        decoder = self._decoder
        heads, groups, size = decoder.heads, decoder.kv_heads, decoder.head_size
        qkv = layer.qkv(normed)
        if decoder.grouped:
            split = qkv.view(-1, groups, decoder.group + 2, size)
            queries = split[:, :, :-2].reshape(-1, heads, size)
            keys, values = split[:, :, -2], split[:, :, -1]
        else:
            whole = qkv.view(-1, heads + 2 * groups, size)
            queries, keys, values = torch.split(whole, [heads, groups, groups], 1)
        if turn is not None:
            queries, keys = self.ops.rotate(queries, *turn), self.ops.rotate(keys, *turn)
        return queries, keys, values

    def _norm(self, added: Tensor | None, x: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        normed, total = self.ops.add_norm(x, added, norm.weight, norm.bias, norm.eps, self._decoder.norm_kind)
        return normed, total

    def _rest(self, index: int, x: Tensor, normed: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """The norm that the next layer (or the head) reads, and the residual stream."""
        layer, decoder = self._layers[index], self._decoder
        norm_mlp = layer.block.norm_mlp
        if not decoder.parallel:
            assert norm_mlp is not None
            normed, x = self._norm(attended, x, norm_mlp)
        elif norm_mlp is not None:
            normed, _ = self._norm(None, x, norm_mlp)
        gate = None if layer.gate is None else layer.gate(normed)
        fed = layer.down(self.ops.activate(layer.up(normed), decoder.activation, gate))
        if decoder.parallel:
            fed = fed + attended
        last = index + 1 == len(self._layers)
        return self._norm(fed, x, decoder.final if last else self._layers[index + 1].block.norm)
