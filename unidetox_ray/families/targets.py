"""The linear layers that low-rank adapters stand on: a family's own, else found in the model itself."""

from __future__ import annotations

from typing import Any

from unidetox_ray import registry
from unidetox_ray.errors import ModelError
from unidetox_ray.families.base import Family

#: Child of state-space mixers (Mamba and hybrids of it). Their fused kernels read the weights of the mixer's other
#: layers without calling them, where an adapter would have no effect.
_CONVOLUTION = "conv1d"
_CALLED_IN_MIXERS = "in_proj"

#: Of a model with fused experts, peft takes these names for the experts' own, whatever layer was meant.
_TAKEN_FOR_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def lora_targets(model: Any) -> list[str]:
    """Names for peft's `target_modules`: last parts of module names, whole names where a last part is ambiguous.

    Every linear layer that a text's logits depend on (`families.reached`), but the output head, routers that return more than
    a product, layers that share their weights with others (merging would change those too), and what a state-space mixer's
    kernels read past an adapter. Of a mixture of experts in fused tensors the experts stay as they are, the shared ones too.
    ModelError: no such layer.
    """
    from unidetox_ray.families.reached import reached

    kind = model.config.model_type
    for name in registry.names("families"):
        family: Family = registry.lookup("families", name)
        if family.model_type == kind:
            return list(family.adapter_targets)
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    shared = _shared_weights(model)
    chosen = [
        name
        for name, module in modules.items()
        if module is not head and _adaptable(name, modules) and module.weight not in shared
    ]
    chosen = reached(model, chosen)
    if not chosen:
        raise ModelError(f"model type {kind!r}: has no linear layer that a low-rank adapter could stand on")
    if _has_fused_experts(model):
        chosen = [name for name in chosen if _leaf(name) not in _TAKEN_FOR_EXPERTS]
    taken = set(chosen)
    ambiguous = {_leaf(name) for name in modules if name not in taken}
    return sorted({name if _leaf(name) in ambiguous else _leaf(name) for name in chosen})


def _shared_weights(model: Any) -> set[Any]:
    """Parameters that more than one module holds."""
    found: set[Any] = set()
    shared: set[Any] = set()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            (shared if weight in found else found).add(weight)
    return shared


def _has_fused_experts(model: Any) -> bool:
    from torch import nn

    return any(
        weight.dim() == 3 and not isinstance(module, nn.Conv1d)
        for module in model.modules()
        for weight in module.parameters(recurse=False)
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _adaptable(name: str, modules: dict[str, Any]) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    module = modules[name]
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    if not plain and type(module) is not Conv1D:
        return False
    parent = modules[name.rpartition(".")[0]]
    return not hasattr(parent, _CONVOLUTION) or _leaf(name).startswith(_CALLED_IN_MIXERS)
