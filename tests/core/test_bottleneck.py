"""Bottleneck adapters: nothing at the start, trained alone, equal in every process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unidetox_ray.core.bottleneck import (
    Bottleneck,
    add_bottlenecks,
    bottleneck_state,
    has_bottlenecks,
    load_bottlenecks,
)


def two_layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7))


def test_the_formula():
    adapter = Bottleneck(7, 3, seed=1)
    with torch.no_grad():
        adapter.up.weight.normal_(generator=torch.Generator().manual_seed(2))
    y = torch.randn(4, 2, 7, generator=torch.Generator().manual_seed(3))
    inner = y.double() @ adapter.down.weight.double().T
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    expected = y.double() + gelu @ adapter.up.weight.double().T
    assert torch.allclose(adapter(y).double(), expected, atol=1e-5) and not torch.allclose(adapter(y), y)
    assert adapter.down.weight.shape == (3, 7) and adapter.up.weight.shape == (7, 3)
    assert adapter.down.bias is None and adapter.up.bias is None


def test_fresh_adapters_change_no_bit_and_are_all_that_trains():
    model = two_layers()
    x = torch.randn(3, 6)
    before = model(x)
    names = set(model.state_dict())
    add_bottlenecks(model, ["0", "2"], size=4, seed=1)
    assert torch.equal(model(x), before)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == set(model.state_dict()) - names == set(bottleneck_state(model.state_dict()))
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 2 * 4 * (5 + 7)
    # W_up learns at once although it is 0, W_down from the second step on.
    model(x).square().sum().backward()
    layer = model[0].bottleneck
    assert layer.up.weight.grad.abs().max() > 0 and layer.down.weight.grad.abs().max() == 0
    assert model[0].weight.grad is None


def test_the_start_is_a_function_of_seed_and_place_alone():
    def start(seed: int, rolled: int) -> dict[str, torch.Tensor]:
        model = two_layers()
        torch.manual_seed(rolled)  # every rank of a training has another state of torch's generator
        add_bottlenecks(model, ["0", "2"], size=4, seed=seed)
        return bottleneck_state(model.state_dict())

    first, second, other = start(1, 5), start(1, 6), start(2, 5)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.bottleneck.down.weight"], other["0.bottleneck.down.weight"])
    assert not torch.equal(first["0.bottleneck.down.weight"][:, :5], first["2.bottleneck.down.weight"][:, :5])


def test_a_copy_goes_its_own_way():
    model = two_layers()
    add_bottlenecks(model, ["2"], size=4, seed=1)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[2].bottleneck.up.weight.fill_(1.0)
    x = torch.randn(3, 6)
    assert not torch.equal(copied(x), model(x)) and model[2].bottleneck.up.weight.abs().max() == 0


def test_states_that_do_not_fit_are_refused():
    model, other = two_layers(), two_layers()
    add_bottlenecks(model, ["0", "2"], size=4, seed=1)
    with torch.no_grad():
        model[0].bottleneck.up.weight.fill_(0.5)
    state = bottleneck_state(model.state_dict())
    add_bottlenecks(other, ["0", "2"], size=4, seed=9)
    load_bottlenecks(other, state)
    x = torch.randn(3, 6)
    assert torch.equal(model(x), other(x))
    with pytest.raises(ValueError, match="on one side only"):
        load_bottlenecks(other, {name: tensor for name, tensor in state.items() if name.startswith("0.")})
    with pytest.raises(ValueError, match=r"is \[2, 5\], expected \[4, 5\]"):
        load_bottlenecks(other, {**state, "0.bottleneck.down.weight": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match="already"):
        add_bottlenecks(model, ["0"], size=4, seed=1)
    with pytest.raises(ValueError, match="no layer"):
        add_bottlenecks(two_layers(), [], size=4, seed=1)
    assert has_bottlenecks(model) and not has_bottlenecks(two_layers())
