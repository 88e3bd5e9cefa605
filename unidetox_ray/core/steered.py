"""Several models as one causal language model whose logits are the steered scores, for likelihoods of given text.

The scores are those of the mixture *without* its truncation (see `Steering.scoring`). The model offers what
`metrics/reader.py` looks for in a Hugging Face model: a body and a head that may run apart, so that only the positions
that are scored reach the vocabulary, and a cache that can be shared. Both are checked there before they are used.

Letters: B rows, T positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unidetox_ray.core.steering import Hook, Steering


@dataclass
class Scored:
    """logits: (B, T, V) float32, unnormalised log-probabilities. past_key_values: what was read, where asked."""

    logits: Tensor
    past_key_values: Any = None


@dataclass
class Hidden:
    """last_hidden_state: (B, T, sum of the models' H), the models' hidden states side by side, hooks applied."""

    last_hidden_state: Tensor
    past_key_values: Any = None


class SteeredModel(nn.Module):
    """A causal language model made of a steering's models; it holds them, and copies nothing.

    `config` is the base model's. A cache holds the layers of all models, one model after the other. Decoding goes
    through `steering` instead, which truncates and has runners.
    """

    def __init__(self, steering: Steering) -> None:
        super().__init__()
        self.steering = steering
        self.models = nn.ModuleList(steering.models)
        self.config = steering.models[0].config
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Scored:
        """input_ids (B, T) int64; the rest as in Hugging Face models. logits_to_keep: the last so many, 0 = all."""
        given = _given(input_ids, attention_mask, position_ids, use_cache)
        if logits_to_keep:
            given["logits_to_keep"] = logits_to_keep
        with self._hooked():
            outputs, cache = _run_all(list(self.models), self.models, given, past_key_values)
        logits = [output.logits[:, -logits_to_keep:] for output in outputs]  # [-0:] is all of them
        return Scored(self.steering.scoring.scores(logits), cache)

    @property
    def base_model(self) -> _Body | None:
        """The models up to their final norm; None where one of them has no such part."""
        bodies = [getattr(model, "base_model", None) for model in self.models]
        known = all(
            body is not None and body is not model for body, model in zip(bodies, self.models, strict=True)
        )
        return _Body(self, bodies) if known else None

    def get_output_embeddings(self) -> _Head | None:
        """From hidden states side by side to the steered scores; None where one of the models has no head."""
        heads = [model.get_output_embeddings() for model in self.models]  # type: ignore[operator]
        return None if any(head is None for head in heads) else _Head(self, heads)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Within the block the models' heads see what the hooks make of their hidden states, at every position."""
        with ExitStack() as stack:
            for model, hook in zip(self.models, self.steering.hooks, strict=False):
                if hook is not None:
                    head = model.get_output_embeddings()  # type: ignore[operator]
                    stack.callback(head.register_forward_pre_hook(_everywhere(hook)).remove)
            yield


class _Body:
    """Called like a model without its head."""

    def __init__(self, whole: SteeredModel, bodies: Sequence[Any]) -> None:
        self._whole, self._bodies = whole, list(bodies)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Hidden:
        given = _given(input_ids, attention_mask, position_ids, use_cache)
        outputs, cache = _run_all(self._bodies, self._whole.models, given, past_key_values)
        states = [output.last_hidden_state for output in outputs]
        for place, hook in enumerate(self._whole.steering.hooks):
            if hook is not None:
                states[place] = _applied(hook, states[place])
        return Hidden(torch.cat(states, dim=-1), cache)

    __call__ = forward


class _Head:
    """(N, sum of H) -> (N, V) float32."""

    def __init__(self, whole: SteeredModel, heads: Sequence[Any]) -> None:
        self._mixture, self._heads = whole.steering.scoring, list(heads)
        #: (V, H): for its shape.
        self.weight: Tensor = heads[0].weight

    def __call__(self, hidden: Tensor) -> Tensor:
        parts = hidden.split([int(head.weight.shape[1]) for head in self._heads], dim=-1)
        return self._mixture.scores(
            [head(part.contiguous()) for head, part in zip(self._heads, parts, strict=True)]
        )


def _given(ids: Tensor, mask: Tensor | None, positions: Tensor | None, use_cache: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"input_ids": ids, "use_cache": use_cache}
    if mask is not None:
        given["attention_mask"] = mask
    if positions is not None:
        given["position_ids"] = positions
    return given


def _run_all(parts: Sequence[Any], models: Any, given: dict[str, Any], cache: Any) -> tuple[list[Any], Any]:
    """What each part (a model or its body) gives, and the cache of all together: `cache`, or a new one."""
    layers = [int(model.config.get_text_config(decoder=True).num_hidden_layers) for model in models]
    caches = [None] * len(parts) if cache is None else _separate(cache, layers)
    outputs = []
    for part, own in zip(parts, caches, strict=True):
        takes = inspect.signature(part.forward).parameters
        wanted = {name: value for name, value in given.items() if name in takes}
        if own is not None:
            wanted["past_key_values"] = own
        outputs.append(part(**wanted))
    if not given["use_cache"]:
        return outputs, None
    if cache is None:
        caches = [getattr(output, "past_key_values", None) for output in outputs]
        if any(not hasattr(own, "layers") for own in caches):
            return outputs, None  # a state-space model's state, for one
        cache = copy.copy(caches[0])
    cache.layers = [layer for own in caches for layer in own.layers]  # type: ignore[union-attr]
    return outputs, cache


def _separate(cache: Any, layers: Sequence[int]) -> list[Any]:
    """A cache of each model's own over its share of the layers: what one model adds the others must not see.

    A cache in which nothing was read yet may know the base model's layers only; the others' are made like them.
    """
    known = list(cache.layers)
    if known and len(known) == layers[0] < sum(layers):
        known += [type(known[0])() for _ in range(sum(layers[1:]))]
    if known and len(known) != sum(layers):
        raise ValueError(f"a cache of {len(known)} layers; the models have {sum(layers)} together")
    parts, first = [], 0
    for count in layers:
        part = copy.copy(cache)
        part.layers = known[first : first + count]
        parts.append(part)
        first += count
    return parts


def _applied(hook: Hook, hidden: Tensor) -> Tensor:
    """The hook on every position of (B, T, H)."""
    return hook(hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape)


def _everywhere(hook: Hook) -> Any:
    def before(_head: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_applied(hook, arguments[0]), *arguments[1:])

    return before
