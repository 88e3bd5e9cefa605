"""Output-layer fusion: a model's last hidden state is blended with that of a smaller companion before its head.

A companion is a causal language model whose head is a map into the fused model's width (`with_map`), so that what it
gives for "logits" are its mapped hidden states, and every runner that decodes a model carries a companion too, with
a cache of its own. Its own head is not computed.

Letters: B open rows, R rows of one call, N rows of either, T positions, H the fused model's hidden size, C the
companion's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from unidetox_ray.core.graphs import Capturable
from unidetox_ray.core.runner import Runner
from unidetox_ray.errors import ModelError

Fuse = Callable[[Tensor, Tensor], Tensor]
"""(N, H) hidden states after the final norm, (N, H) mapped ones of the companion -> (N, H) in the first one's dtype."""


@dataclass(frozen=True)
class Blend:
    """alpha * u + (1 - alpha) * h, where u is the mapped state, normalised over its H values if `norm` (no scale or
    shift is learned). alpha in [0, 1]. In float32, or float64 where the states are."""

    alpha: float
    norm: bool = True

    def __call__(self, hidden: Tensor, mapped: Tensor) -> Tensor:
        # Two products and a sum, each rounded once: a fused multiply-add rounds differently at the ends of vectors.
        blended = self.scaled(mapped) * self.alpha + _wide(hidden) * (1.0 - self.alpha)
        return blended.to(hidden.dtype)

    def scaled(self, mapped: Tensor) -> Tensor:
        """u, (N, H) float32 or float64."""
        mapped = _wide(mapped)
        return torch.layer_norm(mapped, (mapped.shape[-1],)) if self.norm else mapped


@dataclass(frozen=True)
class Fusion:
    """model: the companion, its head a map into the fused model's width. fuse: what is done with both states."""

    model: Any
    fuse: Fuse

    def runner(self, fused: Runner, companion: Runner) -> FusedRunner:
        """Both in lock-step, as one."""
        both = isinstance(fused, Capturable) and isinstance(companion, Capturable)
        return (CapturableFusedRunner if both else FusedRunner)(fused, companion, self.fuse)


def with_map(model: Any, mapping: Tensor) -> Any:
    """The model with a linear map in place of its head: its logits are then its last hidden states times `mapping`.

    model: a causal LM of transformers, changed in place. mapping: (C, H), in any dtype and on any device. ModelError: the
    map does not start at the model's width, or the model does more than multiply with its head.
    """
    body, head = getattr(model, "base_model", None), model.get_output_embeddings()
    if body is None or body is model or head is None:
        raise ModelError(f"a {type(model).__name__} has no hidden state before a head; take another model")
    if mapping.shape[0] != head.weight.shape[1]:
        raise ModelError(
            f"the map starts from {mapping.shape[0]} values, the model's states have {head.weight.shape[1]}"
        )
    own: Tensor = head.weight
    start, end = mapping.shape
    linear = nn.Linear(start, end, bias=False, device=own.device, dtype=own.dtype)
    with torch.no_grad():
        linear.weight.copy_(mapping.t())
    model.set_output_embeddings(linear.requires_grad_(False))
    ids = torch.arange(4, device=own.device)[None]
    with torch.inference_mode():
        found = model(input_ids=ids, use_cache=False).logits
        wanted = linear(body(input_ids=ids, use_cache=False).last_hidden_state)
    if found.shape != wanted.shape or not torch.allclose(
        found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())
    ):
        raise ModelError(
            f"a {type(model).__name__} scales or caps what its head gives, so its hidden states cannot be lent; "
            "take another model"
        )
    return model


class FusedRunner:
    """`core.runner.Runner` of a model and its companion: every call goes to both, the companion first.

    The model's runner is hooked until `release`.
    """

    def __init__(self, fused: Runner, companion: Runner, fuse: Fuse) -> None:
        """ValueError: the companion's map does not lie on the fused model's device."""
        if fused.device != companion.device:
            raise ValueError(f"the model lies on {fused.device}, its companion on {companion.device}")
        self.fused, self.companion = fused, companion
        #: The runners whose memory this one takes.
        self.parts = (fused, companion)
        self.vocab, self.device = fused.vocab, fused.device
        self.refills = fused.refills and companion.refills
        self.shrinks = fused.shrinks and companion.shrinks
        self.on_hidden: Callable[[Tensor], Tensor] | None = None
        self._fuse = fuse
        self._mapped: Tensor | None = None
        fused.on_hidden = self._at_the_head

    def release(self) -> None:
        """Leave the model's runner as it was."""
        self.fused.on_hidden = self.on_hidden = self._mapped = None

    def open(self, rows: int, capacity: int) -> None:
        """See `Runner`."""
        for part in self.parts:
            part.open(rows, capacity)

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        """See `Runner`."""
        self._mapped = self.companion.prefill(ids, lengths, rows)
        return self.fused.prefill(ids, lengths, rows)

    def repeat(self, source: Tensor, target: Tensor) -> None:
        """See `Runner`."""
        for part in self.parts:
            part.repeat(source, target)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Runner`."""
        self._mapped = self.companion.step(tokens)
        return self.fused.step(tokens)

    def keep(self, rows: Tensor) -> None:
        """See `Runner`."""
        for part in self.parts:
            part.keep(rows)

    def close(self) -> None:
        """See `Runner`."""
        self._mapped = None
        for part in self.parts:
            part.close()

    def _at_the_head(self, hidden: Tensor) -> Tensor:
        assert self._mapped is not None, "the companion was not asked first"
        hidden = self._fuse(hidden, self._mapped)
        return hidden if self.on_hidden is None else self.on_hidden(hidden)


class CapturableFusedRunner(FusedRunner):
    """The same where both steps are cut into the device's part and the host's (`core.graphs.Capturable`)."""

    def bound(self) -> int:
        """See `core.lean.LeanRunner.bound`."""
        return max(cast(Capturable, part).bound() for part in self.parts)

    def compute(self, tokens: Tensor, longest: int) -> Tensor:
        """See `core.lean.LeanRunner.compute`."""
        self._mapped = cast(Capturable, self.companion).compute(tokens, longest)
        return cast(Capturable, self.fused).compute(tokens, longest)

    def advanced(self) -> None:
        """See `core.lean.LeanRunner.advanced`."""
        for part in self.parts:
            cast(Capturable, part).advanced()


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
