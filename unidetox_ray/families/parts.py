"""The tensors of an architecture by its config: names, shapes, roles, and which are tied. Takes no memory for weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.core.weights import Layout, Part, Role

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def layout_of(config: PretrainedConfig) -> Layout:
    """The layout of a config's causal language model, tied tensors under the name that comes first in the model."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    roles = _roles(model)
    parts: dict[str, Part] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            tied[name] = known
            continue
        parts[name] = Part(name, roles.get(name.rpartition(".")[0], "other"))
        shapes[name] = tuple(tensor.shape)
    return Layout(parts, shapes, tied, str(model.base_model_prefix), _stored_names(model))


def _stored_names(model: Any) -> dict[str, str]:
    """Names under which transformers saves a model's tensors, to the model's own, where these differ (GPT-NeoX's head)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import revert_weight_conversion

    if not get_model_conversion_mapping(model, add_legacy=False):
        return {}
    found: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        # Of a tensor that is stored in pieces, or together with others, nothing here makes sense: its names stay foreign.
        saved = revert_weight_conversion(model, {name: tensor})
        if len(saved) == 1 and next(iter(saved.values())).shape == tensor.shape:
            found[next(iter(saved))] = name
    return {theirs: ours for theirs, ours in found.items() if theirs != ours}


def _roles(model: Any) -> dict[str, Role]:
    """Module name -> role, where it is not "other"."""
    import torch

    head = model.get_output_embeddings()
    roles: dict[str, Role] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) or module is head:
            roles[name] = "embedding"
        elif "norm" in type(module).__name__.lower():
            roles[name] = "norm"
    return roles
