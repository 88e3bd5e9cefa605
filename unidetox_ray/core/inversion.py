"""Where a running sum over a row crosses a bound, in two levels and without a running sum over the whole row.

A draw by inversion and the border of a nucleus are both this question. Everything here treats a row by itself, bit
for bit: the order of its additions depends on V alone, never on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

#: How many of a row's largest values are looked at before the whole row is sorted.
_NEAR = 1024


def crossing(mass: Tensor, bound: Callable[[Tensor], Tensor]) -> Tensor:
    """For each row the first index at which the running sum exceeds a bound.

    mass: (B, V) float32, >= 0. bound: given the rows' totals (B,) float64 it returns the bounds (B,) float64.
    Returns (B,) int64; where the running sum never exceeds the bound, the last index with mass (0 in a row of zeros). In a row
    whose total is not finite the index means nothing, but is one of the row.
    """
    size = mass.shape[1]
    width = 32 if size <= 4096 else 256
    even = size // width * width
    sums = [mass[:, :even].unflatten(1, (even // width, width)).sum(dim=-1)] if even else []
    if even < size:
        sums.append(mass[:, even:].sum(dim=-1, keepdim=True))
    ends = torch.cat(sums, dim=1).double().cumsum(dim=-1)  # running sum at the end of each block
    total = ends[:, -1:].contiguous()
    limit = bound(total.squeeze(-1)).unsqueeze(-1)
    block = torch.searchsorted(ends, limit, right=True)
    block = torch.minimum(block, torch.searchsorted(ends, total))  # the last block that adds something
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = torch.arange(width, device=mass.device) + block * width
    values = mass.gather(1, inside.clamp(max=size - 1)).double().masked_fill_(inside >= size, 0.0)
    running = values.cumsum(dim=-1).add_(before)
    place = torch.searchsorted(running, limit, right=True)
    # Block sums and running sums round differently: the crossing stays inside its block, on an index with mass.
    place = torch.minimum(place, torch.searchsorted(running, running[:, -1:].contiguous()))
    return (block * width + place).squeeze(-1).clamp_(max=size - 1)


def smallest_of_top_k(values: Tensor, k: int) -> Tensor:
    """(B, V) -> (B, 1): each row's k-th largest value, 1 <= k <= V."""
    if values.device.type == "cpu" and values.dtype == torch.float32:
        place = values.shape[-1] - k  # numpy selects with vector instructions, torch.topk does not
        found = np.partition(values.detach().numpy(), place, axis=-1)[:, place : place + 1]
        return torch.from_numpy(np.ascontiguousarray(found))
    return torch.topk(values, k, dim=-1).values[..., -1:]


def nucleus_border(probability: Tensor, p: float) -> Tensor:
    """The probability of the last token of each row's nucleus.

    probability: (B, V) float32, rows sum to 1. p: in (0, 1). The nucleus is the smallest set of most likely tokens
    whose probabilities reach p; tokens as likely as its last one belong to it too.
    Returns (B, 1): keep what is at least that.
    """
    size = probability.shape[-1]
    if size <= 4 * _NEAR:
        return _border(_ascending(probability), p)[0]
    # Most rows' nuclei lie within their largest values. A flat row's cannot, which its maximum tells.
    border = torch.empty_like(probability[:, :1])
    hopeful = (probability.amax(dim=-1) * _NEAR >= p).nonzero().squeeze(-1)
    missed = torch.ones(probability.shape[0], dtype=torch.bool, device=probability.device)
    if len(hopeful):
        top = _ascending(_largest(_rows(probability, hopeful), _NEAR))
        found, reached = _border(top, p)
        border[hopeful] = found
        missed[hopeful[reached >= p]] = False
    rest = missed.nonzero().squeeze(-1)
    if len(rest):
        border[rest] = _border(_ascending(_rows(probability, rest)), p)[0]
    return border


def _border(ascending: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Of values in rising order: (the last kept one (B, 1), the sum (B,) float64)."""
    totals: list[Tensor] = []

    def bound(total: Tensor) -> Tensor:
        # A token is out when the tokens ahead of it reach p, that is when those up to it sum to total - p at most.
        totals.append(total)
        return total - p

    return ascending.gather(1, crossing(ascending, bound).unsqueeze(-1)), totals[0]


def _rows(values: Tensor, chosen: Tensor) -> Tensor:
    return values if len(chosen) == values.shape[0] else values[chosen]


def _ascending(values: Tensor) -> Tensor:
    if values.device.type == "cpu" and values.dtype == torch.float32:
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
    return torch.sort(values, dim=-1).values


def _largest(values: Tensor, count: int) -> Tensor:
    """(B, V) -> (B, count), in any order."""
    if values.device.type == "cpu" and values.dtype == torch.float32:
        place = values.shape[-1] - count
        return torch.from_numpy(np.partition(values.detach().numpy(), place, axis=-1)[:, place:])
    return torch.topk(values, count, dim=-1, sorted=False).values
