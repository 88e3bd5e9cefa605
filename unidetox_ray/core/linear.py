"""Linear layers of the lean decoder: the model's matrices as they lie, and copies packed for oneDNN on the CPU.

On the CPU in float32 the packed form is two to four times as fast as `F.linear` for 16 to 2,048 rows, applies the
activation on the way out, and gives a row the same bits whatever other rows it is multiplied with and however many
threads work (measured for 2 rows and more; callers always give 16 or more). The price is a second copy of the
weights, made when they are first used, which goes stale when the model is trained on: see `fingerprint`.
Everywhere else `Ordinary` multiplies with the model's own tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: Rows the packing is tuned for. Always the same, so that equal weights are always packed alike.
_TUNED_FOR = 64
#: Our name of an activation -> oneDNN's name and algorithm.
_FUSED = {
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}


@dataclass(frozen=True, eq=False)
class Matrix:
    """y = x W^T + b, stored as one or several parts one below the other (separate q, k and v projections).

    parts: (weight (rows_i, columns), bias (rows_i,) or None) each; `transposed` weights are (columns, rows_i), as in
    GPT-2. Either all parts have a bias or none has.
    """

    parts: tuple[tuple[Tensor, Tensor | None], ...]
    transposed: bool = False

    @property
    def rows(self) -> int:
        return sum(weight.shape[1 if self.transposed else 0] for weight, _ in self.parts)

    def tensors(self) -> list[Tensor]:
        return [tensor for part in self.parts for tensor in part if tensor is not None]

    def joined(self) -> tuple[Tensor, Tensor | None]:
        """Weight (rows, columns) and bias (rows,): views where one part or adjacent parts allow it, else copies."""
        weights = [weight.t() if self.transposed else weight for weight, _ in self.parts]
        biases = [bias for _, bias in self.parts if bias is not None]
        return _one(weights), (_one(biases) if biases else None)

    def lie_together(self) -> bool:
        """Whether `joined` copies nothing."""
        lists = zip(*[part if part[1] is not None else part[:1] for part in self.parts], strict=True)
        return len(self.parts) == 1 or all(_adjacent(list(tensors)) for tensors in lists)

    def put_together(self) -> None:
        """Move separate parts next to one another: the model's parameters become views of one new tensor.

        So one product replaces three without a second copy. Only where nothing needs a gradient: optimisers and
        distributed wrappers have their own views of trained parameters.
        """
        if self.transposed or self.lie_together() or any(tensor.requires_grad for tensor in self.tensors()):
            return
        with torch.inference_mode(False), torch.no_grad():
            for tensors in ([w for w, _ in self.parts], [b for _, b in self.parts if b is not None]):
                if tensors and not any(tensor.is_inference() for tensor in tensors):
                    start, whole = 0, torch.cat(tensors)
                    for tensor in tensors:
                        tensor.data = whole[start : start + tensor.shape[0]]
                        start += tensor.shape[0]


class Ordinary:
    """A matrix multiplied with where it lies; on a CPU row-invariant from 16 rows on, on one or two threads."""

    def __init__(self, matrix: Matrix, order: Tensor | None = None) -> None:
        """order: (rows,) int64, which row of the matrix becomes which output; copies the matrix."""
        self._pieces: list[tuple[Tensor, Tensor | None]]
        if len(matrix.parts) == 1 or order is not None or matrix.lie_together():
            weight, bias = matrix.joined()
            if order is not None:
                weight, bias = weight[order], None if bias is None else bias[order]
            self._pieces = [(weight, bias)]
        else:
            self._pieces = list(matrix.parts)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """x: (N, columns). Returns (N, rows), a new tensor."""
        outputs = [F.linear(x, weight, bias) for weight, bias in self._pieces]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return output if activation == "none" else activate(output, activation)


class Packed:
    """A matrix in oneDNN's own layout: a copy."""

    def __init__(self, matrix: Matrix, order: Tensor | None = None) -> None:
        weight, bias = matrix.joined()
        if order is not None:
            weight, bias = weight[order], None if bias is None else bias[order]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TUNED_FOR)
        # Copied like the weights, so that all of a layer is of one moment.
        self._bias = None if bias is None else bias.detach().clone()
        self._multiply: Any = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """x: (N, columns), N >= 2. Returns (N, rows), a new tensor."""
        name, algorithm = ("none", "") if activation == "none" else _FUSED[activation]
        output: Tensor = self._multiply(x, self._weight, self._bias, name, [], algorithm)
        return output


def activate(x: Tensor, kind: str) -> Tensor:
    """gelu (exact), gelu_tanh, relu or silu of any tensor."""
    if kind == "gelu":
        return F.gelu(x)
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if kind == "relu":
        return torch.relu(x)
    if kind == "silu":
        return F.silu(x)
    raise ValueError(f"activation {kind!r} is not known; accepted: gelu, gelu_tanh, relu, silu")


@functools.cache
def packing_works() -> bool:
    """Whether this build of torch has the packed product and it computes what it should (some builds lack oneDNN)."""
    try:
        with torch.inference_mode():
            draw = torch.Generator().manual_seed(0)
            weight, bias, x = (torch.randn(shape, generator=draw) for shape in ((40, 24), (40,), (16, 24)))
            layer, expected = Packed(Matrix(((weight, bias),))), F.linear(x, weight, bias)
            pairs = [(layer(x), expected)] + [(layer(x, kind), activate(expected, kind)) for kind in _FUSED]
            return all(torch.allclose(got, wanted, rtol=1e-4, atol=1e-4) for got, wanted in pairs)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def fingerprint(tensors: Iterable[Tensor]) -> list[tuple[int, int, int]]:
    """What tells whether weights changed: address, version counter and a hash of the bits of each tensor.

    The counter alone is not enough: writes through `.data` (DeepSpeed's) do not move it. The hash is one pass over the
    weights, a fifth of the time that packing takes.
    """
    return [
        (tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, _hash(tensor))
        for tensor in tensors
    ]


def _hash(tensor: Tensor) -> int:
    if hasattr(torch, "hash_tensor"):
        return int(torch.hash_tensor(tensor.detach()).item())
    return hash(float(tensor.detach().double().sum()))


def _one(tensors: list[Tensor]) -> Tensor:
    """The tensors below one another: a view where they lie so in memory."""
    if len(tensors) == 1:
        return tensors[0]
    if _adjacent(tensors):
        first = tensors[0].detach()
        shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
        return first.as_strided(shape, first.stride(), first.storage_offset())
    return torch.cat([tensor.detach() for tensor in tensors])


def _adjacent(tensors: list[Tensor]) -> bool:
    storage, offset = tensors[0].untyped_storage().data_ptr(), tensors[0].storage_offset()
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != storage or tensor.storage_offset() != offset:
            return False
        if not tensor.is_contiguous():
            return False
        offset += tensor.numel()
    return True
