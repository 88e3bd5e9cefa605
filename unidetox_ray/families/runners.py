"""The best runner for a model, made once."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from unidetox_ray.core.attending import REFUSALS
from unidetox_ray.core.batching import device_lost, out_of_memory
from unidetox_ray.core.runner import Runner
from unidetox_ray.errors import ModelError
from unidetox_ray.families.agreement import disagreement
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.lean import lean_of
from unidetox_ray.families.recompute import RecomputeRunner

_LOG = logging.getLogger(__name__)
#: Largest relative difference of logits that is rounding. In low precision a router that chooses another expert is
#: rounding too, and only a path that does something else altogether is told apart.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
_LOW_PRECISION = 0.5
#: Above that, in float32, it is no rounding, whatever the model makes of it.
_AMPLIFIED = 1e-2

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
    """The model's runner: the lean decoder where it can read the model, else the model's own forward with the library's
    cache, else the same without any cache. Each is compared with the plain forward before it is handed out.

    model: a Hugging Face causal language model. The runner is remembered until the model's weights are replaced,
    moved or changed in place (by what torch knows of; after changes through `.data`, call `forget_runner`).
    lean: False asks for the model's own forward with a cache, which is neither compared nor remembered. ModelError: not even
    the plain forward is one of a causal model.
    """
    if not lean:
        return GenericRunner(model)
    state = _state(model)
    known = model.__dict__.get(_PLACE)
    if known is not None and known.runner is not None and known.state == state:
        found: Runner = known.runner
        return found
    forget_runner(model)
    runner: Runner = lean_of(model) or _by_own_forward(model)
    model.__dict__[_PLACE] = _Remembered(runner, state)
    return runner


def _by_own_forward(model: Any) -> Runner:
    """A runner that calls the model; ModelError where none agrees with the model's own forward on whole texts."""
    dtype = next(model.parameters()).dtype
    tolerance = _TOLERANCE.get(dtype, _LOW_PRECISION)
    reason, gap, before = "", 0.0, math.inf
    for kind in (GenericRunner, RecomputeRunner):
        try:
            runner: Runner = kind(model)
            gap = disagreement(model, runner, most_positions=_positions(model))
        except REFUSALS as error:
            if out_of_memory(error) or device_lost(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            continue
        runner.close()
        # The second runner does nothing but the plain forward: where it differs as much, the model makes much of rounding.
        if gap <= tolerance or (gap <= _AMPLIFIED and before <= 2 * gap):
            return runner
        before = gap
        reason = f"its logits differ from those of whole texts by {gap:.1e}"
        _LOG.debug("%s: not by %s: %s", type(model).__name__, kind.__name__, reason)
    if math.isnan(gap):
        return GenericRunner(
            model
        )  # broken weights, not a broken path: what decodes says so of each sequence
    raise ModelError(
        f"a {type(model).__name__} (model type {model.config.model_type!r}) cannot be decoded token by token ({reason}); "
        "give a causal language model"
    )


def _positions(model: Any) -> int | None:
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return known if isinstance(known, int) and known >= 5 else None


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
