"""What happens between models' logits and the next token: pure functions on (B, V) tensors, and their settings.

Sources: the plausibility constraint and the contrast are UniDetox's (paper section 2; released code
D:292-298); top-k and top-p are the usual filters (Fan et al. 2018; Holtzman et al. 2020).
`core/sampling.py` is the fast way from logits to tokens; `filtered` and `draw` are its plain definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unidetox_ray.core.inversion import nucleus_border, smallest_of_top_k

NEVER = float("-inf")
#: What is drawn in a row that holds NaN or infinity, or nothing but -inf: no token at all.
NOTHING = -1


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature > 0; top_k 0 = off; top_p in (0, 1], 1 = off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """How several models' logits become one row of scores: a weighted sum within a set that model 0 allows.

    weights: finite, one per model, on its log-probabilities. alpha: the plausible set of model 0, in [0, 1]; None or
    0 = every token. nucleus: the top-p set of model 0, taken before the sum (DExperts, Liu et al. 2021), in (0, 1];
    None = every token. dtype: in which the logits are compared; bfloat16 as the released contrast does.
    """

    weights: tuple[float, ...] = (1.0,)
    alpha: float | None = None
    nucleus: float | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not self.weights or not all(math.isfinite(weight) for weight in self.weights):
            raise ValueError(f"mixture weights {self.weights}: give one finite number per model")
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"mixture alpha {self.alpha}: must lie in [0, 1]")
        if self.nucleus is not None and not 0.0 < self.nucleus <= 1.0:
            raise ValueError(f"mixture nucleus {self.nucleus}: must lie in (0, 1]")

    def scores(self, logits: Sequence[Tensor]) -> Tensor:
        """(B, V) per model, any dtype -> (B, V) in `dtype`, -inf outside the allowed set; logits stay as they are.

        At least one entry a row is finite where model 0's logits are. A row's scores are unnormalised
        log-probabilities: in float32 each model's normaliser is a constant of the row and left out.
        """
        if len(logits) != len(self.weights):
            raise ValueError(f"{len(logits)} models, but the mixture has {len(self.weights)} weights")
        given = [rows.to(self.dtype) for rows in logits]
        # On a coarse grid the constant matters: subtracting it first moves what rounds where.
        terms = [
            rows if self.dtype in (torch.float32, torch.float64) else torch.log_softmax(rows, dim=-1)
            for rows in given
        ]
        total = terms[0] if self.weights[0] == 1.0 else terms[0] * self.weights[0]
        for weight, term in zip(self.weights[1:], terms[1:], strict=True):
            # Not torch.add(alpha=...), which rounds once or twice depending on where in memory an entry lies.
            total = total - term if weight == -1.0 else total + (term if weight == 1.0 else term * weight)
        if self.nucleus is not None and self.nucleus < 1.0:
            total = torch.where(in_nucleus(given[0], self.nucleus), total, NEVER)
        if self.alpha:
            total = torch.where(plausible(given[0], self.alpha), total, NEVER)
        return total


def dtype_of(name: Literal["fp32", "bf16"]) -> torch.dtype:
    """The dtype that the settings call `name`."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


#: Plain sampling from one model.
PLAIN = Mixture()


def contrastive(*, alpha: float, beta: float = math.inf, dtype: torch.dtype = torch.float32) -> Mixture:
    """UniDetox's mixture of (base, toxic): favours what the toxic model avoids among what the base finds plausible.

    alpha: plausibility cut in [0, 1]. beta: contrast strength, >= 0; with p the models' probabilities the score is
    (1 + beta) log p_base - beta log p_toxic, and log p_base - log p_toxic at beta = inf (the limit, up to scale,
    that the paper and its released text use). beta = 0 is the base model.
    """
    weights = (1.0, -1.0) if math.isinf(beta) else (1.0 + beta, -beta)
    return Mixture(weights, alpha=alpha, dtype=dtype)


def contrast(base: Tensor, toxic: Tensor, *, alpha: float, beta: float = math.inf) -> Tensor:
    """`contrastive` applied to (B, V) logits of one prefix, each from its own cache, in the dtype they come in."""
    return contrastive(alpha=alpha, beta=beta, dtype=base.dtype).scores([base, toxic])


def plausible(base: Tensor, alpha: float) -> Tensor:
    """The adaptive plausibility set V(x_<t): tokens with p_base >= alpha * max p_base.

    base: (B, V) logits. alpha: in [0, 1]; 0 keeps every token.
    Returns (B, V) bool; the most likely token is always in.
    """
    if alpha == 0.0:
        return torch.ones_like(base, dtype=torch.bool)
    # log-softmax only subtracts a constant, so the comparison holds between logits as well.
    return base >= base.amax(dim=-1, keepdim=True) + math.log(alpha)


def in_nucleus(scores: Tensor, p: float) -> Tensor:
    """The smallest set of most likely tokens whose probability reaches p, with all that are as likely as its last.

    scores: (B, V). p: in (0, 1]. Returns (B, V) bool; the most likely token is always in.
    """
    if p >= 1.0:
        return torch.ones_like(scores, dtype=torch.bool)
    probability = torch.softmax(scores.float(), dim=-1)
    return probability >= nucleus_border(probability, p)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """-inf outside the k highest scores of each row (ties with the k-th stay); k = 0 keeps all. (B, V) -> (B, V)."""
    if k <= 0 or k >= scores.shape[-1]:
        return scores
    return torch.where(scores < smallest_of_top_k(scores, k), NEVER, scores)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """-inf outside `in_nucleus`; p = 1 keeps all. (B, V) -> (B, V)."""
    return scores if p >= 1.0 else torch.where(in_nucleus(scores, p), scores, NEVER)


def filtered(scores: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, then top-k, then top-p: the order of Hugging Face `generate`. (B, V) -> (B, V) float32."""
    scores = scores.float()
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    return keep_top_p(keep_top_k(scores, sampling.top_k), sampling.top_p)


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """One token a row by inversion of the cumulative distribution, written out plainly.

    scores: (B, V) float32 unnormalised log-probabilities. uniform: (B,) float64 in [0, 1).
    Returns (B,) int64, NOTHING where a row has no finite probabilities. A row's draw depends on that row alone. Tokens at
    -inf are never drawn.
    """
    cumulative = torch.softmax(scores, dim=-1).double().cumsum(dim=-1)
    total = cumulative[..., -1:].contiguous()
    threshold = uniform.to(cumulative.device).unsqueeze(-1) * total
    # right=True: a threshold that equals a step of the sum belongs to the next token with mass.
    token = torch.searchsorted(cumulative, threshold, right=True)
    # u < 1 may still round up to the total; then it is the last token with mass.
    token = torch.minimum(token, torch.searchsorted(cumulative, total))
    return torch.where(total.isfinite(), token, NOTHING).squeeze(-1)
