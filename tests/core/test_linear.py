"""Packed and ordinary products, parts that are put together, and what tells that weights changed."""

from __future__ import annotations

import pytest
import torch

from unidetox_ray.core.linear import Matrix, Ordinary, Packed, activate, fingerprint, packing_works

packed = pytest.mark.skipif(not packing_works(), reason="this torch has no packed product")


@packed
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "relu", "silu"])
def test_packed_and_ordinary_products_agree(activation: str, transposed: bool) -> None:
    weight, bias, x = (
        torch.randn(30, 50),
        torch.randn(50 if transposed else 30),
        torch.randn(16, 30 if transposed else 50),
    )
    matrix, order = Matrix(((weight, bias),), transposed), torch.randperm(len(bias))
    wanted = x @ (weight if transposed else weight.t()) + bias
    wanted = wanted if activation == "none" else activate(wanted, activation)
    for kind in (Packed, Ordinary):
        torch.testing.assert_close(kind(matrix)(x, activation), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kind(matrix, order)(x, activation), wanted[:, order], rtol=1e-4, atol=1e-4)


def test_separate_parts_are_put_together_only_where_no_gradient_is_needed() -> None:
    layers = [torch.nn.Linear(6, rows) for rows in (4, 2, 2)]
    matrix = Matrix(tuple((layer.weight, layer.bias) for layer in layers))
    x = torch.randn(16, 6)
    wanted = torch.cat([layer(x) for layer in layers], dim=1).detach()
    matrix.put_together()
    assert not matrix.lie_together()
    for layer in layers:
        layer.requires_grad_(False)
    matrix.put_together()
    assert matrix.lie_together()
    storages = {layer.weight.untyped_storage().data_ptr() for layer in layers}
    assert storages == {matrix.joined()[0].untyped_storage().data_ptr()}
    together_again = Ordinary(matrix)
    torch.testing.assert_close(together_again(x), wanted)
    layers[1].weight.zero_()  # the model's own parameter, and what the product reads
    assert not torch.equal(together_again(x), wanted)


def test_a_fingerprint_tells_every_kind_of_change() -> None:
    weight = torch.nn.Parameter(torch.randn(5, 4))
    before = fingerprint([weight])
    assert fingerprint([weight]) == before
    weight.data[2, 3] += 1e-6  # does not move the version counter
    changed = fingerprint([weight])
    assert changed != before and changed[0][:2] == before[0][:2]
    with torch.no_grad():
        weight.copy_(weight.flip(0))  # the same bits in another order
    assert fingerprint([weight]) != changed
    with torch.inference_mode():
        assert fingerprint([torch.ones(2)])[0][1] == -1
