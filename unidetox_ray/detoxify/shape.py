"""The shape of a model and of its adapters by its config alone: no weights are read, none take memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.detoxify.room import Shape
from unidetox_ray.errors import ModelError
from unidetox_ray.families.positions import positive
from unidetox_ray.settings import FinetuneSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def skeleton(config: PretrainedConfig, name: str) -> Any:
    """The config's model with no numbers in it. ModelError: the config describes no model. name: for the message."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ImportError as error:
        said = " ".join(str(error).split())[:200]
        said = said.rpartition(". ")[0] or said  # no half sentence
        raise ModelError(f"model {name}: needs a package that is not installed here ({said})") from error
    except Exception as error:  # whatever a model class makes of a config that does not fit it
        said = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise ModelError(
            f"model {name}: its config.json describes no model that can be built ({said}); copy the folder again, or take "
            "a model that this version of transformers can build"
        ) from error


def shape_of(model: Any, section: FinetuneSection) -> Shape:
    """model: of `skeleton`. section: whose adapter is asked for."""
    text = model.config.get_text_config(decoder=True)
    total = sum(weight.numel() for weight in model.parameters())
    learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    layers = positive(text, "num_hidden_layers") or 1
    experts = positive(text, "num_experts_per_tok") or 1
    named = [positive(text, name) or 0 for name in ("intermediate_size", "moe_intermediate_size")]
    widest = max([max(named) * experts, *(out for out, _, module in _linears(model) if module is not head)])
    adapters = _adapter_numbers(model, section)
    return Shape(
        parameters=total + adapters,
        trained=adapters or learning,
        layers=layers,
        hidden=int(embedding.shape[1]),
        widest=int(widest),
        vocab=int(head.weight.shape[0] if head is not None else embedding.shape[0]),
    )


def _linears(model: Any) -> list[tuple[int, int, Any]]:
    """(outputs, inputs, module) of every plain linear layer."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: list[tuple[int, int, Any]] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.append((module.out_features, module.in_features, module))
        elif type(module) is Conv1D:
            found.append((module.nf, module.weight.shape[0], module))
    return found


def _adapter_numbers(model: Any, section: FinetuneSection) -> int:
    """Numbers that the adapters have; 0 without any."""
    if section.adapter == "none":
        return 0
    sizes = {module: out + into for out, into, module in _linears(model)}
    if section.adapter == "lora":
        from unidetox_ray.families.targets import lora_targets

        ends = lora_targets(model)
        adapted = [
            size
            for name, module in model.named_modules()
            if (size := sizes.get(module)) is not None
            and any(name == end or name.endswith(f".{end}") for end in ends)
        ]
        return section.lora.rank * sum(adapted)
    from unidetox_ray.families.bottleneck import places_of

    outputs = {module: out for out, _, module in _linears(model)}
    return 2 * section.bottleneck.size * sum(outputs[model.get_submodule(name)] for name in places_of(model))
