"""Log-likelihood of token spans under any Hugging Face causal LM: shared beginnings once, batches sorted by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from unidetox_ray.errors import ConfigError, ModelError
from unidetox_ray.families.positions import positions_of
from unidetox_ray.metrics.prefix_tree import Label

#: Values of float32 logits at any moment: 2**26 of them are 256 MiB, their exponentials as much again. On the CPU
#: 2**22, so that they stay in its caches.
CHUNK_VALUES = 2**26
CPU_CHUNK_VALUES = 2**22
DEFAULT_BUDGET = 16384


class Spans(NamedTuple):
    """In input order. nll: summed nats, NaN where `error` says why there is none (and where the model gave NaN)."""

    nll: list[float]
    error: list[str | None]


def spans(
    model: Any,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    labels: Sequence[Label] | None = None,
    token_budget: int = DEFAULT_BUDGET,
) -> Spans:
    """Summed negative log-likelihood in nats of sequence[start:] given sequence[:start], one per sequence.

    Every start is at least 1: a first token has nothing to be predicted from. A span of no tokens gives 0.0. The
    value is not finite when the model's logits are not.

    labels: which sequences may share their beginnings, from coarse to fine, such as (subject, question); the ids they
    have in common are read once and their keys and values shared, where the model's cache allows it. Equal sequences
    are read once. No batch's padded size (prefix and all) exceeds `token_budget` (less on the CPU) unless a single
    sequence does; out of memory halves it. A sequence whose batch fails whatever its size has the error; the others do not notice.
    """
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        if start < 1 or start > len(sequence):
            raise ValueError(
                f"span_nll: sequence {row} holds {len(sequence)} tokens and cannot be scored from {start}"
            )
    found = Spans([0.0] * len(sequences), [None] * len(sequences))
    rows = [row for row in range(len(sequences)) if starts[row] < len(sequences[row])]
    if not rows:
        return found
    from unidetox_ray.core.batching import cpu_budget
    from unidetox_ray.core.packing import packed_linears
    from unidetox_ray.metrics.prefix_tree import ends, grow, score
    from unidetox_ray.metrics.reader import Reader

    chunk = CHUNK_VALUES
    if next(model.parameters()).device.type == "cpu":
        chunk = min(CHUNK_VALUES, CPU_CHUNK_VALUES)
        token_budget = cpu_budget(token_budget, int(getattr(model.config, "hidden_size", 0)))
    with packed_linears(model, sum(len(sequences[row]) for row in rows)):
        reader = Reader(model)
        share = labels is not None and reader.shares
        roots = grow(sequences, starts, labels or [()] * len(sequences), rows, share)
        score(reader, roots, token_budget, chunk)
    for node in ends(roots):
        for row in node.rows:
            found.error[row] = node.error
            found.nll[row] = float("nan") if node.error else node.total(starts[row])
    return found


def span_nll(
    model: Any,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    token_budget: int = DEFAULT_BUDGET,
) -> list[float]:
    """`spans` for callers that want all or nothing: ModelError names the first sequence that could not be read."""
    found = spans(model, sequences, starts, token_budget=token_budget)
    for row, error in enumerate(found.error):
        if error is not None:
            raise ModelError(f"sequence {row} of {len(sequences[row])} tokens cannot be scored: {error}")
    return found.nll


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
    return positions_of(model.config)


def accepted(name: str, value: str, known: Sequence[str]) -> None:
    """ConfigError when `value` is not one of `known`."""
    if value not in known:
        raise ConfigError(f"{name}: {value!r} is not known; accepted: {', '.join(known)}")
