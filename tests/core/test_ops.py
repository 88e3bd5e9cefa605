"""The plain operations of a decoding step against the arithmetic written out."""

from __future__ import annotations

import torch

from unidetox_ray.core import ops


def test_attend_reads_valid_keys_only() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, heads, groups, size, room = 3, 4, 2, 8, 32
    q, k, v = (
        torch.randn(shape, generator=draw)
        for shape in ((rows, heads, size), *[(rows, groups, room, size)] * 2)
    )
    lengths, slopes = torch.tensor([1, 16, 9]), torch.tensor([0.5, 0.25, 0.1, 0.01])
    for bias in (None, slopes):
        got = ops.attend(q, k, v, lengths, 0.3, bias, 16)
        for row, length in enumerate(lengths.tolist()):
            for head in range(heads):
                scores = k[row, head // 2, :length] @ q[row, head] * 0.3
                if bias is not None:
                    scores += (bias[head].bfloat16() * torch.arange(length).bfloat16()).float() * 0.3
                wanted = torch.softmax(scores, 0) @ v[row, head // 2, :length]
                torch.testing.assert_close(got[row, head], wanted)


def test_write_and_rotate() -> None:
    cache = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 4)
    k, v = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    ops.write(k, v, *cache, torch.tensor([4, 0]))
    assert torch.equal(cache[0][0, :, 4], k[0]) and torch.equal(cache[1][1, :, 0], v[1])
    assert sum(int((part != 0).sum()) for part in cache) == 48
    x, angle = torch.randn(2, 3, 6), torch.tensor([[0.3, 1.1], [2.0, 0.1]])
    angles = torch.cat([angle, angle], dim=1)
    turned = ops.rotate(x, angles.cos(), angles.sin())
    plane = torch.complex(x[..., :2], x[..., 2:4]) * torch.polar(torch.ones(2, 1, 2), angle[:, None])
    torch.testing.assert_close(turned, torch.cat([plane.real, plane.imag, x[..., 4:]], dim=-1))


def test_add_norm_and_gate() -> None:
    x, residual, weight, bias = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8), torch.randn(8)
    normed, total = ops.add_norm(x, residual, weight, bias, 1e-5, "layer")
    assert torch.equal(total, x + residual)
    centred = total - total.mean(dim=1, keepdim=True)
    deviation = (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(normed, centred / deviation * weight + bias)
    normed, total = ops.add_norm(x, None, weight, None, 1e-5, "rms")
    assert torch.equal(total, x)
    torch.testing.assert_close(normed, x / (x.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight)
    torch.testing.assert_close(ops.activate(x, "silu", residual), residual * torch.sigmoid(residual) * x)
