"""Attention on the CPU such that a row's result has the same bits whatever is computed beside it.

Batched matrix products (MKL) give a row the same bits under any number and order of rows, any number of threads and
any key length, provided that (all measured, AMD Zen 5, torch 2.13; `F.scaled_dot_product_attention` does not):
- the key length is a multiple of 16, and what lies behind a row's own keys is masked and finite;
- no product is so small that ATen computes it with a loop of its own;
- values are summed over blocks of keys of fixed size, because MKL splits long sums by their length;
- there are at least 16 batches, because with fewer than threads MKL cuts single products apart.

Letters: R rows, Hq, Hkv query and key heads, G = Hq / Hkv, T positions, L key length, D head size, N batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: ATen multiplies matrices of fewer multiply-adds than this with its own loop, which rounds differently.
_TINY = 400
#: About how many keys are summed at once, and how many queries of a prompt are looked at together.
_BLOCK = 128
_BATCHES = 16
_NEVER = float("-inf")


def sizes(group: int, head_size: int) -> tuple[int, int]:
    """What key lengths must be a multiple of for G = `group` queries at a time, and the keys of a full block."""
    smallest = -(-_TINY // (group * head_size))
    bucket = max(-(-smallest // 16) * 16, 16)
    return bucket, max(_BLOCK // bucket, 1) * bucket


def causal(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None, block: int
) -> Tensor:
    """Attention of whole prompts, each position to itself and those before it.

    queries: (R, Hq, T, D). keys, values: (R, Hkv, T, D). bias: (Hq, >= T) on the scaled scores by key position (ALiBi)
    or None. block: of `sizes`. Returns (R T, Hq D), row r's positions one after another.
    """
    count, heads, width, size = queries.shape
    groups = keys.shape[1]
    group, batch = heads // groups, count * groups
    copies = -(-_BATCHES // batch)
    keys, values = _copies(keys.flatten(0, 1), copies), _copies(values.flatten(0, 1), copies)
    grouped = queries.reshape(count, groups, group, width, size)
    out = queries.new_empty(count, width, groups, group, size)
    for start in range(0, width, block):
        end = min(start + block, width)
        part = _copies(grouped[:, :, :, start:end].reshape(batch, -1, size), copies)
        mask = torch.full((end - start, end), _NEVER, dtype=keys.dtype).triu_(start + 1)
        if bias is None:
            mask = mask.repeat(group, 1)
        else:
            mask = (mask + bias[:, None, :end]).view(groups, -1, end).repeat(count * copies, 1, 1)
        scores = torch.baddbmm(mask, part, keys[:, :end].transpose(1, 2), alpha=scale)
        blocks = [values[:, at : min(at + block, end)] for at in range(0, end, block)]
        mixed = sum_values(torch.softmax(scores, -1), blocks)[:batch]
        out[:, start:end] = mixed.view(count, groups, group, end - start, size).permute(0, 3, 1, 2, 4)
    return out.view(count * width, heads * size)


def sum_values(weights: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """weights (N, M, L) times values given in blocks of keys, (N, L_i, D) each. Returns (N, M, D)."""
    if len(blocks) == 1:
        return torch.bmm(weights, blocks[0])
    start = blocks[0].shape[1]
    total = torch.bmm(weights[:, :, :start], blocks[0])
    for block in blocks[1:]:
        end = start + block.shape[1]
        total = torch.baddbmm(total, weights[:, :, start:end], block)
        start = end
    return total


def _copies(batches: Tensor, copies: int) -> Tensor:
    return batches if copies == 1 else batches.repeat(copies, 1, 1)
