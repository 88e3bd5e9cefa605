# mypy: disable-error-code="no-untyped-def"
"""Residual sum and layer or root-mean-square norm in one pass: a program a row, the row in registers.

Not run on a GPU yet (see `core/kernels/compiler.py`). Letters: N rows, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unidetox_ray.core.kernels.compiler import jit, on_device_of, power_of_two, tl


@jit
def _add_norm(
    x, residual, weight, bias, normed, total, x_row, residual_row, H, eps,
    BLOCK: tl.constexpr, ADD: tl.constexpr, LAYER: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < H
    given = tl.load(x + row * x_row + column, mask=inside, other=0.0)
    if ADD:
        added = tl.load(residual + row * residual_row + column, mask=inside, other=0.0)
        # Rounded before the norm, as where the sum is an operation of its own.
        given = (given.to(tl.float32) + added.to(tl.float32)).to(given.dtype)
        tl.store(total + row * H + column, given, mask=inside)
    wide = given.to(tl.float32)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if LAYER:
        wide = tl.where(inside, wide - tl.sum(wide, 0) / H, 0.0)
    level = tl.sqrt(tl.sum(wide * wide, 0) / H + eps)
    result = wide / level
    if LAYER:
        result = result * scale
        if BIAS:
            result += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    else:
        result = result.to(given.dtype).to(tl.float32) * scale
    tl.store(normed + row * H + column, result.to(given.dtype), mask=inside)


def add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, kind: str
) -> tuple[Tensor, Tensor]:
    """`core.ops.add_norm`: total = x + residual, and its layer norm ("layer") or root-mean-square norm ("rms").

    x, residual: (N, H) float32, bfloat16 or float16. weight, bias: (H,); "rms" takes no bias.
    Returns (normed, total), (N, H) in x's dtype; without a residual, total is x itself. Sums in float32.
    """
    rows, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous()
    normed = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(normed)
    other = x if residual is None else residual
    block = power_of_two(width)
    with on_device_of(x):
        _add_norm[(rows,)](
            x, other, weight, weight if bias is None else bias, normed, total, x.stride(0), other.stride(0), width,
            eps, BLOCK=block, ADD=residual is not None, LAYER=kind == "layer", BIAS=bias is not None,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return normed, total
