"""Bottleneck adapters (Houlsby et al., ICML 2019): y + W_up gelu(W_down y) behind a sub-layer, the model itself frozen.

W_up is 0 at the start, so that the model with adapters is the model without, bit for bit. An adapter is a child of the
linear layer whose output y it reads: the model's own tensors keep their names, and the adapter's stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidetox_ray.core.streams import key_of

_CHILD = "bottleneck"


class Bottleneck(nn.Module):
    """y (..., width) -> y + W_up gelu(W_down y). No biases: 2 x width x size weights.

    W_down is drawn from a normal distribution of deviation 1 / sqrt(width) by `seed`, whatever torch's own generator
    has done: equal in every process that trains the same model. W_up: zeros.
    """

    def __init__(self, width: int, size: int, seed: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, size, bias=False)
        self.up = nn.Linear(size, width, bias=False)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(size, width, generator=draw) / width**0.5)
            self.up.weight.zero_()

    def forward(self, y: Tensor) -> Tensor:
        added: Tensor = self.up(F.gelu(self.down(y)))
        return y + added


def add_bottlenecks(model: nn.Module, places: Sequence[str], *, size: int, seed: int) -> None:
    """Freeze the model and put an adapter behind each of the linear layers named in `places`.

    places: names as in `named_modules`. size: of the bottleneck. ValueError: no place, or a place that has an adapter.
    """
    if not places:
        raise ValueError("no layer to put an adapter behind")
    if has_bottlenecks(model):
        raise ValueError("the model has bottleneck adapters already")
    model.requires_grad_(False)
    for name in places:
        layer: Any = model.get_submodule(name)
        # GPT-2's Conv1D calls its width nf.
        width = int(layer.out_features if hasattr(layer, "out_features") else layer.nf)
        made = Bottleneck(width, size, key_of("bottleneck", seed, name) >> 1)
        layer.add_module(_CHILD, made.to(layer.weight.device, layer.weight.dtype))
        layer.register_forward_hook(_behind)


def _behind(layer: Any, _given: tuple[Any, ...], output: Tensor) -> Tensor:
    adapted: Tensor = layer.bottleneck(output)
    return adapted


def has_bottlenecks(model: nn.Module) -> bool:
    return any(isinstance(module, Bottleneck) for module in model.modules())


def bottleneck_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters' tensors of a state dict, under their full names."""
    return {name: tensor for name, tensor in state.items() if f".{_CHILD}." in name}


def load_bottlenecks(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill the adapters of `model`. ValueError: other names or shapes than its adapters'."""
    wanted = bottleneck_state(dict(model.state_dict(keep_vars=True)))
    if wanted.keys() != state.keys():
        raise ValueError(f"tensors {sorted(wanted.keys() ^ state.keys())[:2]} are on one side only")
    with torch.no_grad():
        for name, tensor in wanted.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}")
            tensor.copy_(state[name])
