"""The first layers of a model as a model of its own: same embeddings, same final norm, same head."""

from __future__ import annotations

import copy
from typing import Any

from unidetox_ray.errors import ModelError


def depth_of(model: Any) -> int:
    """How many decoder layers the model has, by its config. ModelError: the config does not say."""
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(count, int):
        raise ModelError(
            f"a {type(model).__name__} does not say how many layers it has; give a smaller model instead"
        )
    return count


def first_layers(model: Any, layers: int) -> Any:
    """A copy with the first `layers` decoder layers, in float32 on the model's device, in evaluation mode.

    model: a causal LM of transformers; nothing of it is changed or shared. layers: >= 1, all where it has no more.
    The copy is what the model's own config class builds with fewer layers, so that it opens by `from_pretrained`; its
    tensors are found by their names, whichever family it is. ModelError: the shallower config builds another model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    kind, depth = type(model).__name__, depth_of(model)
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    for name, value in vars(text).copy().items():
        if isinstance(value, (list, tuple)) and len(value) == depth > layers:  # one entry a layer
            setattr(text, name, value[:layers])
    text.num_hidden_layers = min(layers, depth)
    try:
        with torch.random.fork_rng(devices=[]):
            shallow: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever a config class makes of a value that it does not expect
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise ModelError(
            f"a {kind} cannot be built with its first {layers} layers alone ({reason}); give a smaller model instead"
        ) from None
    known, wanted = model.state_dict(), shallow.state_dict()
    odd = [name for name, tensor in wanted.items() if name not in known or known[name].shape != tensor.shape]
    if odd or (depth > layers and len(wanted) >= len(known)):
        raise ModelError(
            f"the first {layers} layers of a {kind} cannot be told from its config"
            f"{f' ({odd[0]})' if odd else ''}; give a smaller model instead"
        )
    shallow.load_state_dict({name: known[name] for name in wanted})
    shallow.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return shallow.to(model.device).eval()
