"""Linear maps from one model's space into another's, for fusing their last hidden states (Tian et al. 2025).

Letters: V tokens, N positions, C width of the space that is left, H of the one that is entered, K negatives, S tokens
of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unidetox_ray.core.loop import collate
from unidetox_ray.errors import StageError


@dataclass(frozen=True)
class ContrastiveRecipe:
    """Released values (shared notes E.3), the seed but for."""

    seed: int
    epochs: int = 5
    lr: float = 1e-3
    batch_size: int = 32
    negatives: int = 10


def contrastive_map(source: Tensor, target: Tensor, recipe: ContrastiveRecipe) -> tuple[Tensor, list[float]]:
    """A that makes each token's mapped embedding likest to its own among `negatives` random other tokens.

    Minimises -log softmax over (c_t A) . g of the token's own g_t and the others', by Adam, from A ~ N(0, 1).
    source: (V, C), target: (V, H), one row a token, V >= 2; computed in float32 on the target's device. Returns A (C, H)
    float32 on the CPU and the mean loss of each epoch, in nats. StageError: a value of A is not finite.
    """
    size = len(target)
    if len(source) != size or size < 2:
        raise ValueError(f"{len(source)} and {size} tokens; as many of both are needed, and two at least")
    # All numbers are drawn on the CPU, so that every device sees the same.
    draw = torch.Generator().manual_seed(recipe.seed)
    device = target.device
    source, target = source.detach().float().to(device), target.detach().float()
    start = torch.randn(source.shape[1], target.shape[1], generator=draw)
    mapping = start.to(device).requires_grad_()
    optimizer = torch.optim.Adam([mapping], lr=recipe.lr)
    losses = []
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(recipe.epochs):
            total = torch.zeros((), device=device)
            for tokens in torch.randperm(size, generator=draw).split(recipe.batch_size):
                others = torch.randint(size - 1, (len(tokens), recipe.negatives), generator=draw)
                others += others >= tokens[:, None]  # never the token itself
                among = target[torch.cat([tokens[:, None], others], dim=1).to(device)]  # (S, 1 + K, H)
                mapped = source[tokens.to(device)] @ mapping
                products = torch.einsum("sh,skh->sk", mapped, among)
                own = torch.zeros(len(tokens), dtype=torch.long, device=device)
                loss = F.cross_entropy(products, own, reduction="sum")
                optimizer.zero_grad(set_to_none=True)
                (loss / len(tokens)).backward()
                optimizer.step()
                total += loss.detach()
            losses.append(float(total) / size)
    found = mapping.detach().cpu()
    if not bool(torch.isfinite(found).all()):
        raise StageError("a value of the alignment map is not finite; use a lower alignment_lr")
    return found, losses


def least_squares_map(source: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """A that minimises ||source A - target||, the shortest such A where several do.

    source: (N, C), target: (N, H), any dtype and device; solved in float64 on the CPU, whose solver takes matrices of any
    rank. Returns A (C, H) float32 and the share of ||target||^2 that is left, in [0, 1].
    """
    left, right = source.detach().double().cpu(), target.detach().double().cpu()
    solution = torch.linalg.lstsq(left, right).solution
    rest = float((left @ solution - right).square().sum() / right.square().sum().clamp(min=1e-300))
    return solution.float(), rest


@torch.inference_mode()
def final_states(model: Any, rows: Sequence[Sequence[int]], pad_id: int, *, batch_size: int = 32) -> Tensor:
    """The hidden states that the model's head reads, at every token of every row in order: (N, H) on the CPU.

    model: a causal LM in evaluation mode. rows: token ids, each >= 1.
    """
    device, found = next(model.parameters()).device, []
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], pad_id=pad_id, length=None, loss_on_padding=False)
        mask = batch.attention_mask
        states = model.base_model(
            input_ids=batch.input_ids.to(device), attention_mask=mask.to(device), use_cache=False
        )
        found.append(states.last_hidden_state[mask.to(device).bool()].cpu())
    return torch.cat(found)
