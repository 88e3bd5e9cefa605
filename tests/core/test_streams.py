"""Each sequence's own random numbers."""

from __future__ import annotations

import torch

from unidetox_ray.core.streams import uniforms


def test_streams_are_keyed_by_seed_and_identity():
    first = uniforms(1, ["x", "y"], 6)
    assert torch.equal(uniforms(1, ["y", "x"], 6), first.flip(0))
    assert torch.equal(uniforms(1, ["x"], 3), first[:1, :3])
    assert not torch.equal(uniforms(2, ["x"], 6), first[:1])
    assert not torch.equal(uniforms(1, [0], 6), uniforms(1, [1], 6))
    assert float(first.min()) >= 0.0 and float(first.max()) < 1.0
