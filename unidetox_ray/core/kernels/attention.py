# mypy: disable-error-code="no-untyped-def"
"""Decode attention: one new query a row over the valid part of the row's cache, and nothing behind it.

A program has one row, one key head and one part of the keys, so that keys and values are read once for all query
heads that share them. With one query head per key head a lane of keys keeps a running softmax of its own and the
loop needs no exchange between lanes, only loads; with more, the tensor cores take the products. Where rows times key
heads are too few to fill the device, the keys are split into parts and a second kernel joins the parts' results.

Not run on a GPU yet (see `core/kernels/compiler.py`).

Letters: B rows, Hq and Hkv query and key heads, C cache capacity, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unidetox_ray.core.kernels.compiler import (
    interpreted,
    jit,
    on_device_of,
    power_of_two,
    processors,
    tl,
)

#: Keys that a program looks at in one turn of its loop, at most, and the bytes of them that it holds: in registers
#: with one query head per key head (more spills or leaves room for too few programs), in shared memory otherwise.
_KEYS = 64
_BYTES_SINGLE, _BYTES_GROUPED = 8192, 16384
#: Blocks of keys under way at once.
_STAGES = 3
#: Programs per multiprocessor that keep the memory busy; fewer, and the keys are split.
_PROGRAMS_EACH = 6
_MOST_SPLITS = 32


@jit
def _rounded(x):
    """float32 rounded to bfloat16's grid, to nearest even, on the GPU and in the interpreter (which truncates)."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    return bits.to(tl.float32, bitcast=True)


@jit
def _alibi(slope, position, scale, like):
    """Falcon's bias (`core.ops.alibi`): slope and position in bfloat16, so is their product; then the model's type."""
    bias = _rounded(_rounded(slope) * _rounded(position.to(tl.float32)))
    if like.dtype == tl.bfloat16:
        return _rounded(bias * scale)
    return (bias.to(like.dtype) * scale).to(like.dtype).to(tl.float32)


@jit(do_not_specialize=["longest"])
def _single(
    q, keys, values, lengths, slopes, out, part, state, scale, longest,
    q_row, q_head, k_row, k_head, k_key, v_row, v_head, v_key, heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, ALIBI: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One query head per key head."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    depth = tl.arange(0, BLOCK_D)
    real = depth < D
    length = tl.minimum(tl.load(lengths + row), longest).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, KEYS), SPLITS) * KEYS
    first = split * share
    end = tl.minimum(length, first + share)
    query = tl.load(q + row * q_row + head * q_head + depth, mask=real, other=0.0)
    wide = query.to(tl.float32)
    keys += row * k_row + head * k_head
    values += row * v_row + head * v_head
    # Finite, so that differences of two of them are no NaN.
    top = tl.full((KEYS,), -1.0e30, tl.float32)
    total = tl.zeros((KEYS,), tl.float32)
    mixed = tl.zeros((KEYS, BLOCK_D), tl.float32)
    for start in tl.range(first, end, KEYS, num_stages=STAGES):
        place = start + tl.arange(0, KEYS)
        valid = place < end
        inside = valid[:, None] & real[None, :]
        far = place.to(tl.int64)[:, None]
        key = tl.load(keys + far * k_key + depth[None, :], mask=inside, other=0.0)
        value = tl.load(values + far * v_key + depth[None, :], mask=inside, other=0.0)
        score = tl.sum(key.to(tl.float32) * wide[None, :], 1) * scale
        if ALIBI:
            score += _alibi(tl.load(slopes + head), place, scale, query)
        score = tl.where(valid, score, -1.0e30)
        newer = tl.maximum(top, score)
        fade = tl.exp(top - newer)
        weight = tl.where(valid, tl.exp(score - newer), 0.0)
        total = total * fade + weight
        mixed = mixed * fade[:, None] + weight[:, None] * value.to(tl.float32)
        top = newer
    peak = tl.max(top, 0)
    fade = tl.exp(top - peak)
    whole = tl.sum(total * fade, 0)
    sums = tl.sum(mixed * fade[:, None], 0)
    if SPLITS == 1:
        place_out = out + (row * heads + head) * D + depth
        tl.store(place_out, (sums / tl.maximum(whole, 1.0e-30)).to(query.dtype), mask=real)
    else:
        item = (row * heads + head) * SPLITS + split
        tl.store(part + item * D + depth, sums, mask=real)
        tl.store(state + item * 2, peak)
        tl.store(state + item * 2 + 1, whole)


@jit(do_not_specialize=["longest"])
def _grouped(
    q, keys, values, lengths, slopes, out, part, state, scale, longest,
    q_row, q_head, k_row, k_head, k_key, v_row, v_head, v_key, heads,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr,
    SPLITS: tl.constexpr, ALIBI: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """GROUP query heads per key head, padded to BLOCK_G rows of a matrix product.

    WIDE: products of float32 copies; the interpreter cannot multiply bfloat16.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    depth = tl.arange(0, BLOCK_D)
    real = depth < D
    member = tl.arange(0, BLOCK_G)
    ours = member < GROUP
    head = group * GROUP + member
    length = tl.minimum(tl.load(lengths + row), longest).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, KEYS), SPLITS) * KEYS
    first = split * share
    end = tl.minimum(length, first + share)
    both = ours[:, None] & real[None, :]
    query = tl.load(q + row * q_row + head[:, None] * q_head + depth[None, :], mask=both, other=0.0)
    factor = query.to(tl.float32) if WIDE else query
    if ALIBI:
        slope = tl.load(slopes + head, mask=ours, other=0.0)
    keys += row * k_row + group * k_head
    values += row * v_row + group * v_head
    top = tl.full((BLOCK_G,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    mixed = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    for start in tl.range(first, end, KEYS, num_stages=STAGES):
        place = start + tl.arange(0, KEYS)
        valid = place < end
        inside = valid[:, None] & real[None, :]
        far = place.to(tl.int64)[:, None]
        key = tl.load(keys + far * k_key + depth[None, :], mask=inside, other=0.0)
        value = tl.load(values + far * v_key + depth[None, :], mask=inside, other=0.0)
        if WIDE:
            key = key.to(tl.float32)
            value = value.to(tl.float32)
        score = tl.dot(factor, tl.trans(key), input_precision="ieee") * scale
        if ALIBI:
            score += _alibi(slope[:, None], place[None, :], scale, query)
        score = tl.where(valid[None, :], score, -1.0e30)
        newer = tl.maximum(top, tl.max(score, 1))
        fade = tl.exp(top - newer)
        weight = tl.where(valid[None, :], tl.exp(score - newer[:, None]), 0.0)
        total = total * fade + tl.sum(weight, 1)
        mixed = mixed * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = newer
    if SPLITS == 1:
        place_out = out + (row * heads + head[:, None]) * D + depth[None, :]
        tl.store(place_out, (mixed / tl.maximum(total, 1.0e-30)[:, None]).to(query.dtype), mask=both)
    else:
        item = (row * heads + head) * SPLITS + split
        tl.store(part + item[:, None] * D + depth[None, :], mixed, mask=both)
        tl.store(state + item * 2, top, mask=ours)
        tl.store(state + item * 2 + 1, total, mask=ours)


@jit
def _joined(
    part, state, out,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Join the parts of one row and query head."""
    item = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    depth = tl.arange(0, BLOCK_D)
    used = split < SPLITS
    real = depth < D
    top = tl.load(state + (item * SPLITS + split) * 2, mask=used, other=-1.0e30)
    total = tl.load(state + (item * SPLITS + split) * 2 + 1, mask=used, other=0.0)
    inside = used[:, None] & real[None, :]
    sums = tl.load(part + (item * SPLITS + split[:, None]) * D + depth[None, :], mask=inside, other=0.0)
    fade = tl.exp(top - tl.max(top, 0))
    whole = tl.maximum(tl.sum(total * fade, 0), 1.0e-30)
    mixed = tl.sum(sums * fade[:, None], 0) / whole
    tl.store(out + item * D + depth, mixed.to(out.dtype.element_ty), mask=real)


def splits_for(programs: int, longest: int, multiprocessors: int) -> int:
    """Into how many parts the keys are split. programs: rows times key heads. Returns 1..32, at most one per block."""
    wanted = -(-_PROGRAMS_EACH * multiprocessors // max(1, programs))
    return max(1, min(wanted, -(-longest // _KEYS), _MOST_SPLITS))


def attend(
    q: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    lengths: Tensor,
    scale: float,
    slopes: Tensor | None,
    longest: int,
    *,
    splits: int | None = None,
) -> Tensor:
    """`core.ops.attend`: attention of one new query a row over the row's cache.

    q: (B, Hq, D) float32, bfloat16 or float16. cache_*: (B, Hkv, C, D) of the same dtype, last dimension contiguous;
    query head h reads key head h // (Hq // Hkv). lengths: (B,) int64, valid keys including the current one; what lies
    behind is not read. slopes: ALiBi, (Hq,) float32, or None. longest: host-side bound of `lengths`, at most C; it
    only decides how the work is split, so a loose bound costs nothing. splits: None = chosen from the device.
    Returns (B, Hq, D) in q's dtype; softmax and sums in float32. A row of length 0 gives zeros.
    """
    rows, heads, size = q.shape
    groups = cache_k.shape[1]
    if q.stride(-1) != 1:
        q = q.contiguous()
    if splits is None:
        splits = splits_for(rows * groups, longest, processors(q.device))
    out = torch.empty((rows, heads, size), dtype=q.dtype, device=q.device)
    items = rows * heads * splits if splits > 1 else 1
    part = torch.empty((items, size), dtype=torch.float32, device=q.device)
    state = torch.empty((items, 2), dtype=torch.float32, device=q.device)
    deep = power_of_two(size, 16)
    budget = _BYTES_SINGLE if heads == groups else _BYTES_GROUPED
    keys = max(16, min(_KEYS, budget // (deep * q.element_size())))
    sizes = {
        "D": size,
        "BLOCK_D": deep,
        "KEYS": keys,
        "STAGES": _STAGES,
        "SPLITS": splits,
        "ALIBI": slopes is not None,
    }
    arguments = (
        q, cache_k, cache_v, lengths, lengths if slopes is None else slopes, out, part, state, scale, longest,
        q.stride(0), q.stride(1), *cache_k.stride()[:3], *cache_v.stride()[:3], heads,
    )  # fmt: skip
    grid = (rows, groups, splits)
    with on_device_of(q):
        if heads == groups:
            _single[grid](*arguments, **sizes, num_warps=4)
        else:
            group = heads // groups
            padded = power_of_two(group, 16)
            warps = 4 if padded <= 32 else 8
            wide = interpreted() and q.dtype == torch.bfloat16
            _grouped[grid](*arguments, GROUP=group, BLOCK_G=padded, **sizes, WIDE=wide, num_warps=warps)
        if splits > 1:
            _joined[(rows * heads,)](
                part,
                state,
                out,
                D=size,
                BLOCK_D=deep,
                SPLITS=splits,
                BLOCK_S=power_of_two(splits),
                num_warps=4,
            )
    return out
