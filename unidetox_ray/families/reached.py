"""Which layers the logits of a text depend on, found by trying: an adapter anywhere else would never learn.

A causal language model may hold more than it continues text with: towers for images and sound, the attention to an encoder
that is not there, layers that choose positions without a gradient.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unidetox_ray.core.attending import REFUSALS, causal
from unidetox_ray.families.agreement import evaluating


def reached(model: Any, names: Iterable[str]) -> list[str]:
    """Those of the linear layers `names` that the logits of a text have a gradient through, in their order.

    model: a causal language model, also one without numbers (on the meta device); nothing of it is changed. Of a list of
    experts all count when one does: a few tokens do not visit each. All names where the model cannot be tried.
    """
    asked = list(names)
    probes: dict[str, Tensor] = {}
    hooks = []
    try:
        for name in asked:
            hooks.append(model.get_submodule(name).register_forward_hook(_adding(probes, name)))
        rows = int(model.get_input_embeddings().weight.shape[0])
        ids = torch.randint(rows, (2, 6), generator=torch.Generator().manual_seed(0))
        device = next(model.parameters()).device
        given: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": False}
        if (
            device.type == "meta"
        ):  # the library looks into the mask that it makes itself, where there is nothing to see
            given["attention_mask"] = causal(ids.shape[1], None, device)
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            logits = model(**given).logits
            # Of the logits each to itself: their plain sum has no gradient through a normalisation.
            total = logits.float().logsumexp(-1).sum()
            called = list(probes)
            added = [probes[name] for name in called]
            found = torch.autograd.grad(total, added, allow_unused=True) if added else ()
    except REFUSALS:
        return asked
    finally:
        for hook in hooks:
            hook.remove()
    seen = {_among_experts(name) for name, slope in zip(called, found, strict=True) if slope is not None}
    return [name for name in asked if _among_experts(name) in seen]


def _adding(probes: dict[str, Tensor], name: str) -> Any:
    """A hook that adds a 0 to what the layer gives, whose gradient tells whether anything came of it."""

    def hook(_layer: nn.Module, _given: tuple[Any, ...], output: Tensor) -> Tensor:
        if name not in probes:
            probes[name] = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        return output + probes[name]

    return hook


def _among_experts(name: str) -> str:
    """The name without the numbers behind the layer's own: of experts that stand in a list, their common name."""
    layer = re.match(r"\D*\d+", name)
    end = layer.end() if layer else 0
    return name[:end] + re.sub(r"\d+", "*", name[end:])
