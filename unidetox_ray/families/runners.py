"""The best runner for a model, made once."""

from __future__ import annotations

from typing import Any

import torch

from unidetox_ray.core.runner import Runner
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.lean import lean_of

_PLACE = "_unidetox_runner"


class _Remembered:
    """A model's runner, kept on the model itself; a copied or pickled model does not take it along."""

    def __init__(self, runner: Runner | None = None, state: tuple[Any, ...] = ()) -> None:
        self.runner, self.state = runner, state

    def __deepcopy__(self, _memo: Any) -> _Remembered:
        return _Remembered()

    def __reduce__(self) -> tuple[type[_Remembered], tuple[()]]:
        return _Remembered, ()


def runner_of(model: Any, *, lean: bool = True) -> Runner:
    """The model's runner: the lean decoder where it can read the model, else the model's own forward.

    model: a Hugging Face causal language model. The runner is remembered until the model's weights are replaced,
    moved or changed in place (by what torch knows of; after changes through `.data`, call `forget_runner`).
    lean: False asks for the model's own forward, which is not remembered.
    """
    if not lean:
        return GenericRunner(model)
    state = _state(model)
    known = model.__dict__.get(_PLACE)
    if known is not None and known.runner is not None and known.state == state:
        found: Runner = known.runner
        return found
    forget_runner(model)
    runner: Runner = lean_of(model) or GenericRunner(model)
    model.__dict__[_PLACE] = _Remembered(runner, state)
    return runner


def forget_runner(model: Any) -> None:
    """Let go of the model's runner, its caches and its copies of weights. Without one: nothing happens."""
    known = model.__dict__.pop(_PLACE, None)
    if known is not None and known.runner is not None:
        known.runner.close()


def _state(model: Any) -> tuple[Any, ...]:
    """What changes when the weights do: where each lies, of what kind it is, how often it was written to."""
    return tuple(
        (weight.data_ptr(), weight.dtype, weight.device, -1 if _frozen(weight) else weight._version)
        for weight in model.parameters()
    )


def _frozen(weight: torch.Tensor) -> bool:
    return weight.is_inference()  # such tensors do not count their changes
