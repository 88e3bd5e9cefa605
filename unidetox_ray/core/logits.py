"""What happens between a model's logits and the next token: pure functions on (B, V) float32 tensors.

Sources: the plausibility constraint and the contrast are UniDetox's (paper section 2; released code
D:292-298); top-k and top-p are the usual filters (Fan et al. 2018; Holtzman et al. 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature > 0; top_k 0 = off; top_p in (0, 1], 1 = off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def plausible(base: Tensor, alpha: float) -> Tensor:
    """The adaptive plausibility set V(x_<t): tokens with p_base >= alpha * max p_base.

    base: (B, V) logits. alpha: in [0, 1]; 0 keeps every token.
    Returns (B, V) bool; the most likely token is always in.
    """
    if alpha == 0.0:
        return torch.ones_like(base, dtype=torch.bool)
    # log-softmax only subtracts a constant, so the comparison holds between logits as well.
    return base >= base.max(dim=-1, keepdim=True).values + math.log(alpha)


def contrast(base: Tensor, toxic: Tensor, *, alpha: float, beta: float = math.inf) -> Tensor:
    """Scores that favour what the toxic model avoids, restricted to what the base model finds plausible.

    base, toxic: (B, V) logits of the same prefix, each from its own cache; compared in the dtype they come in
    (callers pass float32; bfloat16 reproduces the released code).
    alpha: plausibility cut in [0, 1]. beta: contrast strength, >= 0; with p the models' probabilities
    the score is (1 + beta) log p_base - beta log p_toxic, and log p_base - log p_toxic at beta = inf (the
    limit, up to scale, that the paper and its released text use). beta = 0 is the base model.
    Returns (B, V), -inf outside the plausible set; at least one entry a row is finite.
    """
    base_log = torch.log_softmax(base, dim=-1)
    toxic_log = torch.log_softmax(toxic, dim=-1)
    scores = base_log - toxic_log if math.isinf(beta) else (1.0 + beta) * base_log - beta * toxic_log
    return scores.masked_fill(~plausible(base, alpha), NEVER)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """-inf outside the k highest scores of each row (ties with the k-th stay); k = 0 keeps all. (B, V) -> (B, V)."""
    if k <= 0 or k >= scores.shape[-1]:
        return scores
    smallest = torch.topk(scores, k, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < smallest, NEVER)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """-inf outside the smallest set of most likely tokens whose probability reaches p; p = 1 keeps all.

    (B, V) -> (B, V). The most likely token always stays.
    """
    if p >= 1.0:
        return scores
    ordered, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    probability = torch.softmax(ordered, dim=-1)
    # A token is out when the tokens ahead of it already reach p.
    outside = (probability.cumsum(dim=-1) - probability) >= p
    outside[..., 0] = False
    return scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), NEVER)


def filtered(scores: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, then top-k, then top-p: the order of Hugging Face `generate`. (B, V) -> (B, V) float32."""
    scores = scores.float()
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    return keep_top_p(keep_top_k(scores, sampling.top_k), sampling.top_p)


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """One token a row by inversion of the cumulative distribution.

    scores: (B, V) float32 unnormalised log-probabilities. uniform: (B,) float64 in [0, 1).
    Returns (B,) int64. A row's draw depends on that row alone. Tokens at -inf are never drawn.
    """
    cumulative = torch.softmax(scores, dim=-1).double().cumsum(dim=-1)
    threshold = uniform.to(cumulative.device).unsqueeze(-1) * cumulative[..., -1:]
    # right=True: a threshold that equals a step of the sum belongs to the next token with mass.
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)
