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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unidetox_ray.core.steering import Steering


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

    `config` is the base model's. A cache holds the layers of all models, one model after the other and companions
    last. Decoding goes through `steering` instead, which truncates and has runners.
    """

    def __init__(self, steering: Steering) -> None:
        super().__init__()
        self.steering = steering
        self.models, self.companions = nn.ModuleList(steering.models), nn.ModuleList(steering.companions)
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
        last = {"logits_to_keep": logits_to_keep} if logits_to_keep else {}
        outputs: dict[int, Any] = {}
        with self._hooked(outputs):
            cache = self._run_all(list(self.models), {**given, **last}, given, past_key_values, outputs)
        # [-0:] is all of them
        logits = [outputs[place].logits[:, -logits_to_keep:] for place in range(len(self.models))]
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

    def _run_all(
        self,
        parts: Sequence[Any],
        given: dict[str, Any],
        plain: dict[str, Any],
        cache: Any,
        outputs: dict[int, Any],
    ) -> Any:
        """Run the models, or their bodies, `parts` with `given` and their companions with `plain`.

        outputs: filled by place in `steering.all_models`. Returns the cache of all together: `cache`, or a new one.
        """
        models, companions = [*self.models, *self.companions], list(self.companions)
        layers = [int(model.config.get_text_config(decoder=True).num_hidden_layers) for model in models]
        caches = [None] * len(models) if cache is None else _separate(cache, layers)
        jobs = [(part, given) for part in parts] + [(companion, plain) for companion in companions]
        # The last first: what a companion gives is needed before the head of its model.
        for place in reversed(range(len(jobs))):
            part, own = jobs[place]
            takes = inspect.signature(part.forward).parameters
            wanted = {name: value for name, value in own.items() if name in takes}
            if caches[place] is not None:
                wanted["past_key_values"] = caches[place]
            outputs[place] = part(**wanted)
        if not plain["use_cache"]:
            return None
        if cache is None:
            caches = [getattr(outputs[place], "past_key_values", None) for place in range(len(jobs))]
            if any(not hasattr(own, "layers") for own in caches):
                return None  # a state-space model's state, for one
            cache = copy.copy(caches[0])
        cache.layers = [layer for own in caches for layer in own.layers]  # type: ignore[union-attr]
        return cache

    @contextmanager
    def _hooked(self, outputs: dict[int, Any]) -> Iterator[None]:
        """Within the block the models' heads see the changed hidden states, at every position.

        outputs: by place in `steering.all_models`, those of the companions by the time a head is called.
        """
        with ExitStack() as stack:
            for place, model in enumerate(self.models):
                if self._changes(place):
                    head = model.get_output_embeddings()  # type: ignore[operator]
                    before = partial(self._before_head, place, outputs)
                    stack.callback(head.register_forward_pre_hook(before).remove)
            yield

    def _before_head(
        self, place: int, outputs: dict[int, Any], _head: Any, arguments: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        return (self._changed(place, arguments[0], outputs), *arguments[1:])

    def _changes(self, place: int) -> bool:
        steering = self.steering
        return any(each[place] is not None for each in (steering.hooks, steering.fusions) if each)

    def _changed(self, place: int, hidden: Tensor, outputs: dict[int, Any]) -> Tensor:
        """(B, T, H) hidden states of model `place`, fused and hooked."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        fusions, hooks = self.steering.fusions, self.steering.hooks
        if fusions and (fusion := fusions[place]) is not None:
            companion = len(self.models) + sum(each is not None for each in fusions[:place])
            # The model may have been asked for the last positions only.
            mapped = outputs[companion].logits[:, -hidden.shape[1] :]
            flat = fusion.fuse(flat, mapped.reshape(flat.shape))
        if hooks and (hook := hooks[place]) is not None:
            flat = hook(flat)
        return flat.reshape(hidden.shape)


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
        outputs: dict[int, Any] = {}
        cache = self._whole._run_all(self._bodies, given, given, past_key_values, outputs)
        states = [outputs[place].last_hidden_state for place in range(len(self._bodies))]
        for place, hidden in enumerate(states):
            if self._whole._changes(place):
                states[place] = self._whole._changed(place, hidden, outputs)
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
