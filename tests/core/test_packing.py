"""Packed linear layers in place: same numbers, follow changed weights, leave training and the model alone."""

import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from unidetox_ray.core.linear import packing_works
from unidetox_ray.core.packing import packed_linears

pytestmark = pytest.mark.skipif(not packing_works(), reason="this build of torch has no packed product")


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 40), torch.nn.GELU(), Conv1D(8, 40), torch.nn.Linear(8, 5, bias=False)]
    return torch.nn.Sequential(*layers).eval()


def test_same_numbers_for_any_number_of_rows(model):
    for shape in [(1, 24), (2, 24), (3, 7, 24), (0, 24), (600, 24)]:
        x = torch.randn(*shape)
        with torch.inference_mode():
            wanted = model(x)
            with packed_linears(model, 10_000) as changed:
                made = model(x)
        assert changed == 3 and made.shape == wanted.shape
        torch.testing.assert_close(made, wanted, rtol=1e-6, atol=1e-6)


def test_weights_that_change_are_packed_anew(model):
    x = torch.randn(16, 24)
    with packed_linears(model, 10_000), torch.no_grad():
        before = model(x)
        model[0].weight.mul_(-1)
        model[3].weight = torch.nn.Parameter(torch.randn(5, 8))
        model[2].bias.add_(3)
        after = model(x)
    with torch.no_grad():
        torch.testing.assert_close(after, model(x), rtol=1e-6, atol=1e-5)
    assert not torch.allclose(before, after)


def test_gradients_flow_as_ever_and_nothing_is_left_behind(model):
    twin, x = copy.deepcopy(model), torch.randn(16, 24)
    with packed_linears(model, 10_000):
        model(x).sum().backward()
    twin(x).sum().backward()
    assert torch.equal(model[0].weight.grad, twin[0].weight.grad)
    assert all("forward" not in layer.__dict__ for layer in model)


def test_what_does_not_pay_or_cannot_be_packed_stays(model):
    with packed_linears(model, 3) as changed:
        assert changed == 0
    with packed_linears(model.to(torch.bfloat16), 10_000) as changed:
        assert changed == 0


def test_an_error_inside_restores_the_layers(model):
    with pytest.raises(ZeroDivisionError), packed_linears(model, 10_000):
        raise ZeroDivisionError
    assert all("forward" not in layer.__dict__ for layer in model)
