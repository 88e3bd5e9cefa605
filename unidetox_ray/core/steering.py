"""Several causal language models that are read as one: how a decoding method hands itself to the engine.

A `Steering` is a list of models, the `Mixture` of their logits from which tokens are drawn, and optionally a hook on a
model's hidden state before its head, or a companion whose state is fused with it. `core/decode.py` runs the models in
lock-step, each with a cache of its own (methods.md, pitfall N.3); `core/steered.py` makes one model of them, for
likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from unidetox_ray.core.fused import FusedRunner, Fusion
from unidetox_ray.core.logits import PLAIN, Mixture, Sampling
from unidetox_ray.core.runner import Runner
from unidetox_ray.errors import ModelError

Hook = Callable[[Tensor], Tensor]
"""(N, H) hidden states after the final norm, before the head -> the same shape and dtype."""


@dataclass(frozen=True)
class Steering:
    """models: Hugging Face causal LMs on one device, the base model first, no model twice. mixture: one weight per
    model, with the method's own truncation. hooks: one per model, or none at all. fusions: likewise; a model's states
    are fused with its companion's before the hook sees them."""

    models: tuple[Any, ...]
    mixture: Mixture = PLAIN
    hooks: tuple[Hook | None, ...] = ()
    fusions: tuple[Fusion | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.models) != len(self.mixture.weights):
            raise ValueError(
                f"{len(self.models)} models, but the mixture has {len(self.mixture.weights)} weights"
            )
        if self.hooks and len(self.hooks) != len(self.models):
            raise ValueError(f"{len(self.models)} models, but {len(self.hooks)} hooks")
        if self.fusions and len(self.fusions) != len(self.models):
            raise ValueError(f"{len(self.models)} models, but {len(self.fusions)} fusions")
        if len({id(model) for model in self.all_models}) < len(self.all_models):
            raise ValueError("one model stands twice; add its weights up (`weighted` does)")

    @contextmanager
    def runners(self, runner_of: Callable[[Any], Runner]) -> Iterator[list[Runner]]:
        """The models' runners for `core.decode.decode`, hooks in place until the end of the block.

        runner_of: makes or finds a model's runner (`families.runners.runner_of`); it may remember it, and so the hooks
        are taken off again.
        """
        made = [runner_of(model) for model in self.models]
        fused: list[FusedRunner] = []
        hooked: list[Runner] = []
        try:
            for place, fusion in enumerate(self.fusions):
                if fusion is not None:
                    fused.append(fusion.runner(made[place], runner_of(fusion.model)))
                    made[place] = fused[-1]
            for runner, hook in zip(made, self.hooks, strict=False):
                if hook is not None:
                    hooked.append(runner)
                    runner.on_hidden = hook
            yield made
        finally:
            for runner in hooked:
                runner.on_hidden = None
            for each in fused:
                each.release()

    @property
    def companions(self) -> tuple[Any, ...]:
        """The models whose states are fused into another's, which draw no token."""
        return tuple(fusion.model for fusion in self.fusions if fusion is not None)

    @property
    def all_models(self) -> tuple[Any, ...]:
        """Every model that is run: those of the mixture, then their companions."""
        return (*self.models, *self.companions)

    def alone(self) -> list[Steering]:
        """Each model of the mixture by itself, with what changes its hidden states."""
        nothing = (None,) * len(self.models)
        changes = zip(self.models, self.hooks or nothing, self.fusions or nothing, strict=True)
        return [Steering((model,), PLAIN, (hook,), (fusion,)) for model, hook, fusion in changes]

    @property
    def scoring(self) -> Mixture:
        """The mixture without its truncation.

        A text that anybody wrote soon holds a token outside the plausible set or the nucleus. Its likelihood would be
        zero and its perplexity infinite, for every method that truncates and whatever its strength.
        """
        return replace(self.mixture, alpha=None, nucleus=None)

    def sampling(self, sampling: Sampling) -> Sampling:
        """How tokens are drawn from the mixture where the experiment asks for `sampling`.

        A method that samples in the base model's nucleus does that in place of a nucleus of the mixture (DExperts'
        published runs: none after mixing). At strength 0 it is then the base model sampled with that top-p.
        """
        return sampling if self.mixture.nucleus is None else replace(sampling, top_p=1.0)

    def extra_bytes(self) -> int:
        """Bytes of weights that decoding keeps in memory beside the base model's; shared storages count once."""
        own, others = _storages(self.all_models[:1]), _storages(self.all_models[1:])
        hooks = sum(getattr(hook, "nbytes", 0) for hook in self.hooks)
        return hooks + sum(size for place, size in others.items() if place not in own)


def weighted(
    parts: Sequence[tuple[Any, float]], *, alpha: float | None = None, nucleus: float | None = None
) -> Steering:
    """A weighted sum of models' logits in float32.

    parts: (model, weight), the base model first. A model that stands in it several times is run once, with the sum of
    its weights; one whose weights cancel is not run at all, so that a dial at 0 leaves the base model's own bits.
    alpha, nucleus: truncation by the base model's distribution, as in `Mixture`.
    """
    sums: dict[int, float] = {}
    models: dict[int, Any] = {}
    for model, weight in parts:
        models[id(model)] = model
        sums[id(model)] = sums.get(id(model), 0.0) + weight
    base = id(parts[0][0])
    kept = [place for place, weight in sums.items() if weight != 0.0 or place == base]
    mixture = Mixture(tuple(sums[place] for place in kept), alpha=alpha, nucleus=nucleus)
    return Steering(tuple(models[place] for place in kept), mixture)


def check_agreement(models: Mapping[str, Any], tokenizers: Mapping[str, Any]) -> None:
    """ModelError unless all models mean the same token by the same id, and give as many logits.

    models, tokenizers: by role, "base" among them.
    """
    check_tokenizers(tokenizers)
    sizes = {name: int(model.get_output_embeddings().weight.shape[0]) for name, model in models.items()}
    for name, size in sizes.items():
        if size != sizes["base"]:
            raise ModelError(
                f"the {name} model gives {size} logits and the base model {sizes['base']}; "
                f"take a {name} model made from the same base, with an embedding of the same size"
            )


def check_tokenizers(tokenizers: Mapping[str, Any]) -> None:
    """ModelError unless every tokenizer gives the base's tokens the base's ids.

    tokenizers: by role, "base" among them. Vocabularies are compared token by token: embeddings that are padded
    to a round number of rows have equal sizes for unequal vocabularies, and unequal sizes for equal ones.
    """
    base = tokenizers["base"].get_vocab()
    for name, tokenizer in tokenizers.items():
        other = tokenizer.get_vocab()
        if other == base:
            continue
        token = min(
            (token for token in base.keys() | other.keys() if base.get(token) != other.get(token)),
            key=lambda token: (min(known[token] for known in (base, other) if token in known), token),
        )
        mine, its = (
            "no id" if found is None else f"id {found}" for found in (base.get(token), other.get(token))
        )
        raise ModelError(
            f"the {name} model's tokenizer is not the base model's: token {token!r} has {its} there and {mine} in the "
            f"base ({len(other)} and {len(base)} tokens); take a {name} model made from the same base"
        )


def _storages(models: Sequence[Any]) -> dict[int, int]:
    """Where the weights lie and how many bytes each storage holds."""
    stored = [weight.untyped_storage() for model in models for weight in model.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in stored}
