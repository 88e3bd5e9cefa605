"""From models' logits to the next tokens in as few passes over the vocabulary as torch allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unidetox_ray.core.inversion import crossing, nucleus_border
from unidetox_ray.core.logits import NOTHING, Mixture, Sampling, keep_top_k


def sample(logits: Sequence[Tensor], mixture: Mixture, sampling: Sampling, uniform: Tensor) -> Tensor:
    """One token a row: mixture, temperature, top-k, top-p, then inversion by the row's number.

    logits: (B, V) per model, any dtype, left unchanged. uniform: (B,) float64 in [0, 1). Returns (B,) int64,
    NOTHING where a row has no finite probabilities. Equals `draw(filtered(mixture.scores(logits), sampling), uniform)` up to rounding of the running sum (about
    1e-7 of the unit interval). A row's token depends on that row alone, bit for bit; a token that the mixture or a
    filter put at -inf is never drawn.
    """
    scores = mixture.scores(logits).float()
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    scores = keep_top_k(scores, sampling.top_k)
    probability = torch.softmax(scores, dim=-1)
    if sampling.top_p < 1.0:
        border = nucleus_border(probability, sampling.top_p)
        # A comparison written as 0.0 and 1.0 is several times faster than a choice by a mask of booleans.
        kept = torch.ge(probability, border, out=torch.empty_like(probability))
        probability = kept.mul_(probability)
    numbers = uniform.to(probability.device)
    totals: list[Tensor] = []

    def bound(total: Tensor) -> Tensor:
        totals.append(total)
        return numbers * total

    token = crossing(probability, bound)
    return torch.where(totals[0].isfinite(), token, NOTHING)
