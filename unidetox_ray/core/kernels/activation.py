# mypy: disable-error-code="no-untyped-def"
"""The feed-forward's activation, with or without a gate, in one pass.

Not run on a GPU yet (see `core/kernels/compiler.py`). Letters: N rows, F feed-forward width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unidetox_ray.core.kernels.compiler import jit, on_device_of, power_of_two, tl

_KINDS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3}
_WIDEST = 2048


@jit
def _activate(
    x, gate, out, x_row, gate_row, F,
    KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    given = tl.load(x + row * x_row + column, mask=inside, other=0.0)
    z = given.to(tl.float32)
    if GATED:
        z = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    if KIND == 0:
        result = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif KIND == 1:
        # (1 + tanh y) / 2 is the logistic function of 2 y; here 2 sqrt(2 / pi) (z + 0.044715 z^3).
        result = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    elif KIND == 2:
        result = tl.where(z < 0.0, 0.0, z)  # keeps NaN
    else:
        result = z * tl.sigmoid(z)
    if GATED:
        result = result.to(given.dtype).to(tl.float32) * given.to(tl.float32)
    tl.store(out + row * F + column, result.to(given.dtype), mask=inside)


def activate(x: Tensor, kind: str, gate: Tensor | None = None) -> Tensor:
    """`core.ops.activate`: act(x), or with a gate act(gate) * x. kind: gelu (exact), gelu_tanh, relu or silu.

    x, gate: (N, F), rows may be strided (views of one product's output). Returns (N, F) contiguous in x's dtype.
    ValueError: another kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"activation {kind!r} is not known; accepted: {', '.join(_KINDS)}")
    rows, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    other = x if gate is None else gate if gate.stride(1) == 1 else gate.contiguous()
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    block = min(_WIDEST, power_of_two(width))
    with on_device_of(x):
        _activate[(rows, -(-width // block))](
            x, other, out, x.stride(0), other.stride(0), width,
            KIND=_KINDS[kind], GATED=gate is not None, BLOCK=block, num_warps=max(1, min(8, block // 256)),
        )  # fmt: skip
    return out
