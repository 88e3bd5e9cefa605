"""What the families' readers share: module of a Hugging Face model -> part of `core.decoder.Decoder`.

A reader accepts a module only when it knows exactly what its forward computes: the very class of transformers or
torch, plain dense weights, nothing hooked in. Anything else is `Unsupported`, and the model's own forward is used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unidetox_ray.core.decoder import Norm, Rotary
from unidetox_ray.core.linear import Matrix

#: Hugging Face's names of activations -> ours.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
#: Rope types whose frequencies do not depend on the length of the text.
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")


class Unsupported(Exception):
    """Why the lean decoder cannot compute a model; the message is a reason in a few words."""


def require(condition: bool, reason: str) -> None:
    """Unsupported with this reason unless the condition holds."""
    if not condition:
        raise Unsupported(reason)


def check_plain(model: Any, class_name: str) -> None:
    """The model is this class of transformers itself, and no module carries a hook or a forward of its own."""
    kind = type(model)
    require(
        kind.__name__ == class_name and kind.__module__.startswith("transformers."),
        f"is a {kind.__name__}, not transformers' {class_name}",
    )
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # transformers leaves its own recorders behind; they change nothing.
        foreign = [hook for hook in hooks if getattr(hook, "__module__", "") != _RECORDERS]
        require(not foreign and "forward" not in vars(module), f"module {name or '(the model)'} is hooked")


_RECORDERS = "transformers.utils.output_capturing"


def matrix(*modules: Any) -> Matrix:
    """Linear layers below one another, or one Conv1D (GPT-2: weight (columns, rows))."""
    names = {type(module).__name__ for module in modules}
    if names == {"Conv1D"} and len(modules) == 1:
        return Matrix(((_dense(modules[0].weight), modules[0].bias),), transposed=True)
    known = all(type(module) is nn.Linear or type(module).__name__ == "FalconLinear" for module in modules)
    require(known, f"has a layer of class {'/'.join(sorted(names))}")
    biases = [module.bias is not None for module in modules]
    require(all(biases) or not any(biases), "only some of the q, k and v projections have a bias")
    return Matrix(tuple((_dense(module.weight), module.bias) for module in modules))


def norm(module: Any) -> Norm:
    """A LayerNorm with weights, or LLaMA's root-mean-square norm."""
    if type(module) is nn.LayerNorm:
        require(module.weight is not None, "has a layer norm without weights")
        return Norm(_dense(module.weight), module.bias, module.eps)
    require(type(module).__name__ == "LlamaRMSNorm", f"has a norm of class {type(module).__name__}")
    return Norm(_dense(module.weight), None, module.variance_epsilon)


def activation(name: str) -> str:
    """Our name of an activation function."""
    require(name in _ACTIVATIONS, f"has the activation {name!r}")
    return _ACTIVATIONS[name]


def embedding(module: Any) -> Tensor:
    """An embedding's (rows, H) weight."""
    require(isinstance(module, nn.Embedding), f"has an embedding of class {type(module).__name__}")
    require(module.max_norm is None, "has an embedding that renormalises")
    return _dense(module.weight)


def rotary(module: Any, config: Any, head_size: int) -> Rotary:
    """Rotary positions over whole heads, with frequencies that are fixed."""
    kind = str(config.rope_parameters["rope_type"])
    require(kind in _FIXED_ROPE, f"has rotary positions of type {kind!r}")
    frequencies = module.inv_freq
    require(2 * frequencies.shape[0] == head_size, "rotates only a part of each head")
    return Rotary(frequencies, float(module.attention_scaling))


def alibi_slopes(heads: int, device: torch.device) -> Tensor:
    """(heads,) float32: a geometric series for a power of two; the rest from the next power's, every other one."""
    below = 2 ** math.floor(math.log2(heads))
    first = torch.full((), 2.0 ** -(2.0 ** -(math.log2(below) - 3)), dtype=torch.float32, device=device)
    slopes = torch.pow(first, torch.arange(1, 1 + below, dtype=torch.int32, device=device))
    if below == heads:
        return slopes
    second = torch.full((), 2.0 ** -(2.0 ** -(math.log2(2 * below) - 3)), dtype=torch.float32, device=device)
    odd = torch.arange(1, 1 + 2 * (heads - below), 2, dtype=torch.int32, device=device)
    return torch.cat([slopes, torch.pow(second, odd)])


def _dense(tensor: Any) -> Tensor:
    """The tensor, when it is an ordinary one that holds numbers here (no shard, no meta, no quantised weight)."""
    plain = type(tensor) in (nn.Parameter, torch.Tensor) and type(tensor.data) is torch.Tensor
    require(plain, f"has weights of class {type(tensor).__name__}")
    require(tensor.numel() > 0 and tensor.device.type in ("cpu", "cuda"), "its weights are not here")
    require(tensor.is_floating_point() and tensor.layout == torch.strided, "its weights are not dense")
    return tensor  # type: ignore[no-any-return]
