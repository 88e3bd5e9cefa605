# mypy: disable-error-code="no-untyped-def"
"""Rotary positions and the cache's new entry, apart (`rotate`, `write`) and in one launch (`rotate_write`).

Not run on a GPU yet (see `core/kernels/compiler.py`).

Letters: N rows, B rows of the cache, Hq and Hkv heads, D head size, Dr rotated part of it, C cache capacity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unidetox_ray.core.kernels.compiler import jit, on_device_of, power_of_two, tl

#: Elements (heads times head size) that one program handles.
_TILE = 2048


@jit
def _turned(x, cos, sin, depth, inside, real, DR: tl.constexpr):
    """A tile of heads, rotated, in float32. x: pointers (heads, 1). cos, sin: the row's."""
    half: tl.constexpr = DR // 2
    partner = tl.where(depth < half, depth + half, depth - half)
    turning = depth < DR
    given = tl.load(x + depth[None, :], mask=inside, other=0.0)
    other = tl.load(x + partner[None, :], mask=inside & turning[None, :], other=0.0).to(tl.float32)
    other = tl.where((depth < half)[None, :], -other, other)
    cosine = tl.load(cos + depth, mask=turning, other=1.0).to(tl.float32)
    sine = tl.load(sin + depth, mask=turning, other=0.0).to(tl.float32)
    return given.to(tl.float32) * cosine[None, :] + other * sine[None, :]


@jit
def _rotate(
    x, cos, sin, out, x_row, x_head, cos_row, sin_row, heads,
    D: tl.constexpr, DR: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    depth = tl.arange(0, BLOCK_D)
    real = depth < D
    inside = (head < heads) & real[None, :]
    turned = _turned(
        x + row * x_row + head * x_head, cos + row * cos_row, sin + row * sin_row, depth, inside, real, DR
    )
    target = out + (row * heads + head) * D + depth[None, :]
    tl.store(target, turned.to(out.dtype.element_ty), mask=inside)


@jit
def _store(
    k, v, cache_k, cache_v, positions, cos, sin, k_row, k_head, v_row, v_head,
    ck_row, ck_head, ck_key, cv_row, cv_head, cv_key, cos_row, sin_row, heads, capacity, row, block,
    D: tl.constexpr, DR: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Keys (rotated if DR > 0) and values of some heads of one row into the cache."""
    head = (block * HEADS + tl.arange(0, HEADS))[:, None]
    depth = tl.arange(0, BLOCK_D)
    real = depth < D
    place = tl.load(positions + row)
    # A row that is stepped past its capacity writes nowhere.
    inside = (head < heads) & real[None, :] & (place >= 0) & (place < capacity)
    if DR > 0:
        key = _turned(
            k + row * k_row + head * k_head, cos + row * cos_row, sin + row * sin_row, depth, inside, real, DR
        )
    else:
        key = tl.load(k + row * k_row + head * k_head + depth[None, :], mask=inside, other=0.0)
    value = tl.load(v + row * v_row + head * v_head + depth[None, :], mask=inside, other=0.0)
    target_k = cache_k + row * ck_row + head.to(tl.int64) * ck_head + place * ck_key + depth[None, :]
    target_v = cache_v + row * cv_row + head.to(tl.int64) * cv_head + place * cv_key + depth[None, :]
    tl.store(target_k, key.to(cache_k.dtype.element_ty), mask=inside)
    tl.store(target_v, value.to(cache_v.dtype.element_ty), mask=inside)


@jit
def _write(
    k, v, cache_k, cache_v, positions, k_row, k_head, v_row, v_head,
    ck_row, ck_head, ck_key, cv_row, cv_head, cv_key, heads, capacity,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    _store(
        k, v, cache_k, cache_v, positions, positions, positions, k_row, k_head, v_row, v_head,
        ck_row, ck_head, ck_key, cv_row, cv_head, cv_key, 0, 0, heads, capacity,
        tl.program_id(0).to(tl.int64), tl.program_id(1), D, 0, BLOCK_D, HEADS,
    )  # fmt: skip


@jit
def _rotate_write(
    q, k, v, cos, sin, out, cache_k, cache_v, positions, q_row, q_head, k_row, k_head, v_row, v_head,
    ck_row, ck_head, ck_key, cv_row, cv_head, cv_key, cos_row, sin_row, q_heads, kv_heads, capacity, q_blocks,
    D: tl.constexpr, DR: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    if block < q_blocks:
        head = (block * HEADS + tl.arange(0, HEADS))[:, None]
        depth = tl.arange(0, BLOCK_D)
        real = depth < D
        inside = (head < q_heads) & real[None, :]
        turned = _turned(
            q + row * q_row + head * q_head, cos + row * cos_row, sin + row * sin_row, depth, inside, real, DR
        )
        target = out + (row * q_heads + head) * D + depth[None, :]
        tl.store(target, turned.to(out.dtype.element_ty), mask=inside)
    else:
        _store(
            k, v, cache_k, cache_v, positions, cos, sin, k_row, k_head, v_row, v_head,
            ck_row, ck_head, ck_key, cv_row, cv_head, cv_key, cos_row, sin_row, kv_heads, capacity,
            row, block - q_blocks, D, DR, BLOCK_D, HEADS,
        )  # fmt: skip


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _tile(size: int, heads: int) -> tuple[int, int]:
    """BLOCK_D and the heads of one program."""
    deep = power_of_two(size)
    return deep, min(power_of_two(heads), max(1, _TILE // deep))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`core.ops.rotate`: rotary positions, rotate-half convention (Su et al. 2021).

    x: (N, heads, D), last dimension contiguous or copied. cos, sin: (N, Dr), Dr even, <= D; dimensions past Dr stay.
    Returns (N, heads, D) contiguous in x's dtype; computed in float32 and rounded once.
    """
    x, cos, sin = _dense(x), _dense(cos), _dense(sin)
    rows, heads, size = x.shape
    deep, tile = _tile(size, heads)
    out = torch.empty((rows, heads, size), dtype=x.dtype, device=x.device)
    with on_device_of(x):
        _rotate[(rows, -(-heads // tile))](
            x, cos, sin, out, x.stride(0), x.stride(1), cos.stride(0), sin.stride(0), heads,
            D=size, DR=cos.shape[1], BLOCK_D=deep, HEADS=tile, num_warps=4,
        )  # fmt: skip
    return out


def write(k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, positions: Tensor) -> None:
    """`core.ops.write`: store one position of every row, in place.

    k, v: (B, Hkv, D), any strides. cache_*: (B, Hkv, C, D), last dimension contiguous. positions: (B,) int64; rows
    whose position lies outside 0..C-1 are left as they are.
    """
    k, v = _dense(k), _dense(v)
    rows, heads, size = k.shape
    deep, tile = _tile(size, heads)
    with on_device_of(k):
        _write[(rows, -(-heads // tile))](
            k, v, cache_k, cache_v, positions, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            *cache_k.stride()[:3], *cache_v.stride()[:3], heads, cache_k.shape[2],
            D=size, BLOCK_D=deep, HEADS=tile, num_warps=4,
        )  # fmt: skip


def rotate_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    positions: Tensor,
) -> Tensor:
    """`write(rotate(k), v)` and `rotate(q)` in one launch instead of three. Shapes as there. Returns (B, Hq, D)."""
    q, k, v, cos, sin = _dense(q), _dense(k), _dense(v), _dense(cos), _dense(sin)
    rows, heads, size = q.shape
    groups = k.shape[1]
    deep, tile = _tile(size, max(heads, groups))
    blocks = -(-heads // tile)
    out = torch.empty((rows, heads, size), dtype=q.dtype, device=q.device)
    with on_device_of(q):
        _rotate_write[(rows, blocks + -(-groups // tile))](
            q, k, v, cos, sin, out, cache_k, cache_v, positions,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            *cache_k.stride()[:3], *cache_v.stride()[:3], cos.stride(0), sin.stride(0),
            heads, groups, cache_k.shape[2], blocks, D=size, DR=cos.shape[1], BLOCK_D=deep, HEADS=tile, num_warps=4,
        )  # fmt: skip
    return out
