"""Turning a Hugging Face model into a `LeanRunner`, where its family has a reader and the numbers agree."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from unidetox_ray import registry
from unidetox_ray.core import kernels
from unidetox_ray.core.decoder import Decoder
from unidetox_ray.core.lean import LeanRunner
from unidetox_ray.families.agreement import disagreement
from unidetox_ray.families.base import Family
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.reading import Unsupported, require

_LOG = logging.getLogger(__name__)
#: Largest difference of logits, relative to the largest logit, that is rounding.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
#: Above that it is no rounding, whatever the model makes of it.
_AMPLIFIED = 1e-2


def lean_of(model: Any, *, through_ops: bool = False) -> LeanRunner | None:
    """A lean runner for the model, or None; `lean_or_reason` says why not."""
    return lean_or_reason(model, through_ops=through_ops)[0]


def lean_or_reason(model: Any, *, through_ops: bool = False) -> tuple[LeanRunner | None, str]:
    """A lean runner, or None and the reason in a few words.

    model: a causal LM of transformers, on one device. Before the runner is handed out its logits are compared with the
    model's own forward on a few random ids. The runner re-reads the model at every `open`, so training goes on freely
    between two decodes. On the CPU in float32 it holds a packed copy of the weights until `close`; on CUDA it
    multiplies with the model's own, and moves separate q, k, v parameters that need no gradient (call
    `model.requires_grad_(False)` first) next to one another so that one product serves all three.
    """
    try:
        runner = LeanRunner(functools.partial(read, model), ops=_kernels_for(model), through_ops=through_ops)
        _check(model, runner)
    except Unsupported as reason:
        _LOG.debug("%s: decoded by its own forward: %s", type(model).__name__, reason)
        return None, str(reason)
    return runner, ""


def _kernels_for(model: Any) -> Any:
    """The Triton kernels where they run on the model's device; None: the plain operations."""
    return kernels if kernels.why_not(next(model.parameters()).device) is None else None


def read(model: Any) -> Decoder:
    """The model's weights as the lean decoder wants them. Unsupported where no reader fits."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for name in registry.names("families"):
        family: Family = registry.lookup("families", name)
        if family.model_type == kind and family.read_lean is not None:
            decoder = family.read_lean(model)
            _check_shapes(decoder)
            return decoder
    raise Unsupported(f"no reader for model type {kind!r}")


def _check_shapes(decoder: Decoder) -> None:
    """One dtype, one device, and matrices of the size that the heads imply."""
    size, hidden = decoder.head_size, decoder.hidden
    tensors = [tensor for matrix in decoder.matrices() for tensor in matrix.tensors()]
    tensors += [decoder.embedding, *(block.norm.weight for block in decoder.blocks), decoder.final.weight]
    require(len({tensor.dtype for tensor in tensors}) == 1, "its weights are of several dtypes")
    require(decoder.dtype in _TOLERANCE, f"its weights are {decoder.dtype}")
    require(len({tensor.device for tensor in tensors}) == 1, "its weights lie on several devices")
    require(decoder.heads % decoder.kv_heads == 0, "its key heads do not divide its query heads")
    wanted = (decoder.heads + 2 * decoder.kv_heads) * size
    require(
        all(block.qkv.rows == wanted for block in decoder.blocks), "its q, k, v projections have other sizes"
    )
    require(all(block.out.rows == hidden for block in decoder.blocks), "its width changes between layers")
    require(size % 2 == 0, "its heads have an odd size")


def _check(model: Any, runner: LeanRunner) -> None:
    """Compare with the model's own forward (`families.agreement`). Unsupported if unequal.

    A model may make much of rounding, so that its own forward differs as much from itself; that is no mistake of the runner.
    """
    limit = runner.max_positions or 64
    require(limit >= 5, f"knows {limit} positions only")
    try:
        error = disagreement(model, runner, most_positions=limit)
    finally:
        runner.empty()
    agrees = error <= _TOLERANCE[runner.dtype]  # also false when not a number
    if not agrees and error <= _AMPLIFIED:
        agrees = error <= 2 * disagreement(model, GenericRunner(model), most_positions=limit)
    require(agrees, f"its logits differ from its own forward's by {error:.1e}")
