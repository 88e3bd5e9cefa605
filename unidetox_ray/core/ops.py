"""The small operations of one decoding step in plain torch: the reference that `core/kernels` (Triton) must equal.

The decoder on CUDA, and everywhere in bfloat16 and float16, is written in these (`core/lean_ops.py`); the CPU in full
precision has a forward of its own (`core/lean_cpu.py`). None waits for the device, so all may be captured in a graph.

Letters: N rows, B rows of the cache, H hidden size, F feed-forward width, Hq and Hkv query and key heads, D head size,
C cache capacity.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unidetox_ray.core import linear


def add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, kind: str
) -> tuple[Tensor, Tensor]:
    """total = x + residual, and its layer norm ("layer") or root-mean-square norm ("rms").

    x, residual: (N, H). weight, bias: (H,); "rms" takes no bias. Returns (normed, total), (N, H) in x's dtype.
    The root mean square is taken in float32, rounded, then scaled, as LLaMA does in transformers (in float64 too).
    """
    total = x if residual is None else x + residual
    if kind == "layer":
        return F.layer_norm(total, (total.shape[-1],), weight, bias, eps), total
    wide = total.float()
    wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * wide.to(total.dtype), total


def activate(
    x: Tensor, kind: Literal["gelu", "gelu_tanh", "relu", "silu"], gate: Tensor | None = None
) -> Tensor:
    """act(x), or with a gate act(gate) * x. x, gate: (N, F). Returns (N, F)."""
    return linear.activate(x, kind) if gate is None else linear.activate(gate, kind) * x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, rotate-half convention (Su et al. 2021; the pairing of GPT-NeoX and LLaMA).

    x: (N, heads, D). cos, sin: (N, Dr), Dr <= D, both halves alike; dimensions past Dr stay. Returns (N, heads, D).
    """
    size = cos.shape[-1]
    part, rest = x[..., :size], x[..., size:]
    first, second = part.chunk(2, dim=-1)
    turned = part * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), dim=-1)


def write(k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, positions: Tensor) -> None:
    """Store one position of every row, in place. k, v: (B, Hkv, D). cache_*: (B, Hkv, C, D). positions: (B,) int64."""
    rows = torch.arange(k.shape[0], device=k.device)
    cache_k[rows, :, positions] = k
    cache_v[rows, :, positions] = v


def alibi(slopes: Tensor, positions: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """ALiBi's bias on the scaled scores, as Falcon computes it (transformers).

    slopes: (Hq,) float32. positions: (L,) int64. Returns (Hq, L) in `dtype`. Slope and position are rounded to
    bfloat16, so is their product; the model's dtype comes in after that, before the scaling.
    """
    product = slopes.bfloat16()[:, None] * positions.bfloat16()
    return product.to(dtype) * scale


def attend(
    q: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    lengths: Tensor,
    scale: float,
    slopes: Tensor | None,
    longest: int,
) -> Tensor:
    """Attention of one new query a row over the row's cache.

    q: (B, Hq, D). cache_*: (B, Hkv, C, D); query head h reads key head h // (Hq // Hkv). lengths: (B,) int64, valid
    keys including the current one, >= 1. slopes: ALiBi or None. longest: host-side bound of `lengths`, at most C.
    Returns (B, Hq, D) in q's dtype; softmax and sums in float32 at least.
    """
    rows, heads, size = q.shape
    groups = cache_k.shape[1]
    keys, values = cache_k[:, :, :longest], cache_v[:, :, :longest]
    positions = torch.arange(longest, device=q.device)
    masked = (positions >= lengths[:, None])[:, None, None]
    bias = torch.zeros((), dtype=q.dtype, device=q.device)
    if slopes is not None:
        bias = alibi(slopes, positions, scale, q.dtype).view(1, groups, heads // groups, longest)
    # masked_fill and not torch.where, which would copy its scalar to the device and break a capture.
    mask = bias.expand(rows, groups, heads // groups, longest).masked_fill(masked, float("-inf"))
    grouped = q.reshape(rows, groups, heads // groups, size)
    if q.is_cuda:
        mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return mixed.reshape(rows, heads, size)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = grouped.to(wide) @ keys.to(wide).transpose(2, 3) * scale + mask.to(wide)
    return (torch.softmax(scores, dim=-1) @ values.to(wide)).to(q.dtype).reshape(rows, heads, size)
