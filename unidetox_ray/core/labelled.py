"""The head only where it is needed: logits of the positions that have a label, and of no others.

A causal LM's head is its widest layer (V columns against H), and a padded batch asks for logits that no loss reads: at
8 x 256 positions of GPT-2 the float32 logits alone are 0.4 GB, and their shifted copy as much again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from unidetox_ray.core.loss import IGNORE


def predicted(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(where, wanted) of labels (B, T) int64 that are `IGNORE` where no loss is wanted.

    where: (N,) int64, positions of the flattened (B*T) batch whose logits are needed: those before a label.
    wanted: (N,) int64, the labels. The first label of a row never counts. Made where `labels` lies: on the CPU no
    device waits for the number N.
    """
    target = labels[:, 1:]
    row, column = (target != IGNORE).nonzero(as_tuple=True)
    return row * labels.shape[1] + column, target[row, column]


def head_of(model: Any) -> nn.Module | None:
    """The module that makes logits of hidden states, also through peft's wrappers; None where the model names none."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None


class Seen:
    """calls: how often the head was asked for all (B, T) positions, and answered for the labelled ones."""

    calls = 0


@contextmanager
def labelled_only(model: Any, where: Tensor, rows: int, positions: int) -> Iterator[Seen]:
    """Within the block, the head reads `where` (N,) of a (rows, positions, H) batch: `output.logits` is (1, N, V).

    Whatever the model does with the logits afterwards, scales and soft-caps, it does to these. A head that is called
    otherwise, on flattened or already selected states, is left alone; `Seen.calls` then stays 0.
    """
    head, seen = head_of(model), Seen()
    if head is None:
        yield seen
        return

    def select(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        states = given[0] if given else None
        if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[:2] != (rows, positions):
            return None
        seen.calls += 1
        return (states.reshape(rows * positions, -1).index_select(0, where).unsqueeze(0), *given[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()


def labelled_logits(logits: Tensor, where: Tensor, seen: Seen) -> Tensor:
    """(N, V): what the model gave under `labelled_only`, or the labelled positions of its full (B, T, V)."""
    if seen.calls:
        return logits[0]
    return logits.reshape(-1, logits.shape[-1]).index_select(0, where)
