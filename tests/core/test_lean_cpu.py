"""The parts of the CPU forward: row counts, and causal attention against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from unidetox_ray.core import attention
from unidetox_ray.core.lean_cpu import rows_padded


@pytest.mark.parametrize(("rows", "heads", "groups", "size"), [(3, 4, 2, 8), (1, 3, 1, 16), (5, 4, 4, 12)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_causal_attention(rows: int, heads: int, groups: int, size: int, with_bias: bool) -> None:
    bucket, block = attention.sizes(heads // groups, size)
    width = 3 * block + bucket  # several blocks and a short one
    q = torch.randn(rows, heads, width, size)
    k, v = torch.randn(2, rows, groups, width, size)
    bias = torch.randn(heads, width + 5) if with_bias else None
    mask = torch.full((width, width), float("-inf")).triu(1)
    mask = mask if bias is None else mask + bias[:, None, :width]
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.4, enable_gqa=True)
    got = attention.causal(q, k, v, 0.4, bias, block)
    torch.testing.assert_close(got.view(rows, width, heads, size), wanted.transpose(1, 2))


@pytest.mark.parametrize("group", [1, 2, 8, 71])
@pytest.mark.parametrize("size", [2, 8, 12, 24, 64, 128])
def test_no_product_is_tiny(group: int, size: int) -> None:
    bucket, block = attention.sizes(group, size)
    assert bucket % 16 == 0 and block % bucket == 0
    assert bucket * group * size >= 400
    assert bucket == 16 or (bucket - 16) * group * size < 400


def test_padded_row_counts_are_few_and_near() -> None:
    counts = [rows_padded(rows) for rows in range(1, 5000)]
    assert all(count >= rows and count % 16 == 0 for rows, count in enumerate(counts, start=1))
    assert all(count <= max(rows + 15, rows * 1.125 + 1) for rows, count in enumerate(counts, start=1))
    assert len(set(counts)) < 60
