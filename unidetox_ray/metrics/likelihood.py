"""Log-likelihood of token spans under any Hugging Face causal LM, in padded batches, summed in float32 and above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unidetox_ray.errors import ConfigError, ModelError
from unidetox_ray.metrics.classifier import budgeted_batches

if TYPE_CHECKING:
    import torch

#: Values of float32 logits at any moment: 2**26 of them are 256 MiB, their log-softmax as much again.
CHUNK_VALUES = 2**26
DEFAULT_BUDGET = 16384


def span_nll(
    model: Any,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    token_budget: int = DEFAULT_BUDGET,
) -> list[float]:
    """Summed negative log-likelihood in nats of sequence[start:] given sequence[:start], one float per sequence.

    Every start is at least 1: a first token has nothing to be predicted from. A span of no tokens gives 0.0. The
    value is not finite when the model's logits are not. Batches are right-padded and sorted by length; no batch holds
    more than `token_budget` tokens unless a single sequence does.
    """
    import torch

    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        if start < 1 or start > len(sequence):
            raise ValueError(
                f"span_nll: sequence {row} holds {len(sequence)} tokens and cannot be scored from {start}"
            )
    totals = [0.0] * len(sequences)
    rows = [row for row in range(len(sequences)) if starts[row] < len(sequences[row])]
    device = next(model.parameters()).device
    parts: list[tuple[list[int], torch.Tensor]] = []
    for batch in budgeted_batches([len(sequences[row]) for row in rows], token_budget):
        batch = [rows[i] for i in batch]
        longest = max(len(sequences[row]) for row in batch)
        # The pad id is masked out, so that any id of the vocabulary serves; 0 is in all of them.
        ids = torch.tensor([[*sequences[row], *[0] * (longest - len(sequences[row]))] for row in batch])
        lengths = torch.tensor([len(sequences[row]) for row in batch])[:, None]
        columns = torch.arange(longest)[None, :]
        mask = columns < lengths
        scored = mask & (columns >= torch.tensor([starts[row] for row in batch])[:, None])
        ids = ids.to(device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask.long().to(device), use_cache=False).logits
            where = scored.nonzero().to(device)
            parts.append((batch, _sums(logits, ids, where)))
    for batch, sums in parts:
        for row, value in zip(batch, sums.tolist(), strict=True):
            totals[row] = value
    return totals


def _sums(logits: torch.Tensor, ids: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """logits (B, T, V), ids (B, T), where (N, 2) scored positions -> (B,) float64 sums of -log p(ids[b, t])."""
    import torch

    sums = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    for chunk in where.split(max(1, CHUNK_VALUES // logits.shape[-1])):
        row, position = chunk[:, 0], chunk[:, 1]
        chosen = logits[row, position - 1].float()
        nll = chosen.logsumexp(dim=-1) - chosen.gather(1, ids[row, position][:, None])[:, 0]
        sums.index_add_(0, row, nll.double())
    return sums


def start_ids(tokenizer: Any, bos: bool) -> list[int]:
    """What every sequence begins with: the tokenizer's BOS, or its EOS where it has no BOS (GPT-2's is both)."""
    if not bos:
        return []
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path}: has neither a BOS nor an EOS token; score with bos=False"
        )
    return [int(token)]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without special tokens, in one call."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)[
        "input_ids"
    ]
    return found


def longest_input(model: Any) -> int | None:
    """How many positions the model has; None where it does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def accepted(name: str, value: str, known: Sequence[str]) -> None:
    """ConfigError when `value` is not one of `known`."""
    if value not in known:
        raise ConfigError(f"{name}: {value!r} is not known; accepted: {', '.join(known)}")
