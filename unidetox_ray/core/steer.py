"""A linear steer of the hidden state before a model's head (Han et al., ACL 2024), and the hook that applies it.

h' = h + epsilon * sum_i s_i (h W_i), where W = P1 P2^T or a full matrix: the same logits as moving every output embedding
e_v by epsilon s W e_v (shared notes B.1). The head itself, its bias and its ties to the input are not touched.

Letters: N rows, H hidden size, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unidetox_ray.core.lean_cpu import rows_padded
from unidetox_ray.core.linear import Matrix, Ordinary, Packed, packing_works


@dataclass(frozen=True, eq=False)
class Steer:
    """W, float32. first: (H, R), or W itself, (H, H), where second is None. second: (H, R), W = first second^T."""

    first: Tensor
    second: Tensor | None = None

    @property
    def hidden(self) -> int:
        return int(self.first.shape[0])

    @property
    def rank(self) -> int | None:
        """R; None for a full matrix."""
        return None if self.second is None else int(self.first.shape[1])

    def tensors(self) -> list[Tensor]:
        return [self.first] if self.second is None else [self.first, self.second]

    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors())

    def times(self, hidden: Tensor) -> Tensor:
        """(N, H) float32 -> h W, (N, H)."""
        product = hidden @ self.first
        return product if self.second is None else product @ self.second.T

    def dense(self) -> Tensor:
        """W, (H, H)."""
        return self.first if self.second is None else self.first @ self.second.T

    def norm(self) -> float:
        """Frobenius norm of W."""
        return float(torch.linalg.matrix_norm(self.dense().double()))


class SteerHook:
    """(N, H) -> (N, H) of the same dtype: h + sum_i factor_i (h W_i), computed in float32.

    The steers are joined into one, as two thin matrices or one full one, whichever is less work. On a CPU they are packed
    as the lean decoder's are, and a row's bits do not depend on the other rows (`core.linear`).
    """

    def __init__(self, parts: Sequence[tuple[Steer, float]], device: torch.device) -> None:
        """parts: (steer, factor) each, all of one hidden size; the factor is epsilon times the steer's value."""
        hidden = parts[0][0].hidden
        thin = all(steer.second is not None for steer, _ in parts)
        if thin and 2 * sum(steer.rank or 0 for steer, _ in parts) < hidden:
            down = torch.cat([steer.first for steer, _ in parts], dim=1)
            up = torch.cat(
                [factor * steer.second for steer, factor in parts if steer.second is not None], dim=1
            )
            matrices = [down.T, up]
        else:
            matrices = [torch.stack([factor * steer.dense() for steer, factor in parts]).sum(dim=0).T]
        matrices = [matrix.detach().float().contiguous().to(device) for matrix in matrices]
        #: Bytes of memory that the hook holds.
        self.nbytes = sum(matrix.numel() * matrix.element_size() for matrix in matrices)
        self._padded = device.type == "cpu" and packing_works()
        linear: Callable[[Matrix], Packed | Ordinary] = Packed if self._padded else Ordinary
        self._layers = [linear(Matrix(((matrix, None),))) for matrix in matrices]

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        rows = hidden.shape[0]
        moved = hidden.float()
        if self._padded and rows != rows_padded(rows):
            moved = torch.cat([moved, moved.new_zeros(rows_padded(rows) - rows, moved.shape[1])])
        for layer in self._layers:
            moved = layer(moved)
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return (wide + moved[:rows]).to(hidden.dtype)
