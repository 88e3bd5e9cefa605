"""What the decode engine needs of a model: rows of static cache that are filled, stepped, copied and dropped.

A runner owns one model and its cache. `families/runners.py` finds the best one for a Hugging Face model: the lean
decoder where it can read the model, the model's own forward otherwise. The engine (`core/decode.py`) drives any
number of them in lock-step and knows nothing else about models.

Letters: B open rows, R rows of one call, T positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Runner(Protocol):
    """One causal language model with B rows of cache. Every call runs without gradients.

    The order of calls: `open`, then `prefill` (and `repeat`) until every row that is stepped holds at least one
    position, then `step` and `keep` in any order, with more `prefill` and `repeat` in between where `refills`.
    `open` may come again at any time and starts over; `close` ends.
    """

    #: V: how many logits a row has.
    vocab: int
    #: Where the cache lies and where ids are expected; logits come back here.
    device: torch.device
    #: Whether `prefill` and `repeat` may name some rows while others are under way. If not, `prefill` names all
    #: rows that will be used, 0..R-1 of a fresh `open`, in one call; `repeat` follows it at once, and its target
    #: may be all B rows.
    refills: bool
    #: Whether `keep` is supported.
    shrinks: bool
    #: Hook on the (rows, H) hidden state after the final norm, before the head; returns the same shape. None: no
    #: hook. A runner that cannot offer it raises NotImplementedError when it is set to anything else.
    on_hidden: Callable[[Tensor], Tensor] | None

    def open(self, rows: int, capacity: int) -> None:
        """Empty caches: `rows` rows of at most `capacity` positions (prompt and new tokens together)."""

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        """Read prompts into rows, which are emptied first.

        ids: (R, T) int64, right-padded with any id. lengths: (R,) int64 in 1..T. rows: (R,) int64, distinct, in
        0..B-1. All on `device`. Returns (R, V) logits after each prompt's last token, in the model's dtype.
        """
        ...

    def repeat(self, source: Tensor, target: Tensor) -> None:
        """Rows `target` become copies of rows `source`: (K,) int64 each, targets distinct.

        All sources are read before any target is written (a row may be both).
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Append (B,) int64 tokens, one for every open row, also for rows that ended or were never filled.

        Such a row's logits mean nothing, and it may be stepped past `capacity` without harm. Returns (B, V) in the
        model's dtype; the tensor may be overwritten by the next call.
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, (K,) int64 ascending; they are renumbered 0..K-1 and B becomes K."""

    def close(self) -> None:
        """Let go of the caches (not of the model). `open` starts again."""
