"""A small decoder of random weights, and pairs of small models with the runners that read them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decode_models import ARCHITECTURES, RUNNERS, model

from unidetox_ray.core.decoder import Block, Decoder, Norm
from unidetox_ray.core.linear import Matrix


def decoder(seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """Two layers of random weights: learned positions, layer norms, grouped queries."""
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(device, dtype)

    def matrix(rows: int, columns: int) -> Matrix:
        return Matrix(((new(rows, columns), new(rows)),))

    def norm() -> Norm:
        return Norm(1 + new(32), new(32), 1e-5)

    blocks = tuple(
        Block(
            norm(), matrix(64, 32), matrix(32, 32), norm(), matrix(64, 32), None, matrix(32, 64), 16**-0.5 / 2
        )
        for _ in range(2)
    )
    return Decoder(
        blocks, norm(), Matrix(((4 * new(50, 32), None),)), new(50, 32), new(80, 32), 0, None, None,
        heads=4, kv_heads=2, head_size=8, norm_kind="layer", activation="gelu_tanh", parallel=False, grouped=False,
    )  # fmt: skip


@pytest.fixture
def random_decoder() -> Callable[..., Decoder]:
    """Makes a decoder from a seed, a device and a dtype."""
    return decoder


@pytest.fixture(params=sorted(ARCHITECTURES), scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two models of one architecture."""
    return model(request.param, 0), model(request.param, 1)


@pytest.fixture(params=sorted(RUNNERS))
def runner(request: pytest.FixtureRequest) -> Callable[[torch.nn.Module], Any]:
    """Makes a model's runner."""
    return RUNNERS[request.param]
