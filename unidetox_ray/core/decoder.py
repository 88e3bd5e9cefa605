"""What a pre-norm decoder consists of, as plain data: the lean forward (`core/lean.py`) needs nothing else of a model.

The tensors are the model's own (no copies), so a training step shows at once in whatever reads them directly. The
readers in `families/` fill this in from Hugging Face models.

Letters: H hidden size, D head size, V vocabulary, F feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unidetox_ray.core.linear import Matrix

NormKind = Literal["layer", "rms"]


@dataclass(frozen=True, eq=False)
class Norm:
    """Weight (H,), bias (H,) or None (always None for "rms"), and the epsilon under the root."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary positions: `inverse_frequencies` (D/2,) float32, and the factor on cosine and sine (1 but for YaRN)."""

    inverse_frequencies: Tensor
    scaling: float

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (P, D) each, both halves alike; computed in float32 like Hugging Face, then rounded."""
        angles = positions[:, None].float() * self.inverse_frequencies.float()
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)


@dataclass(frozen=True, eq=False)
class Block:
    """One layer. A parallel layer (Falcon) computes attention and feed-forward from the same input and adds both."""

    norm: Norm
    qkv: Matrix
    """(Hq + 2 Hkv) * D rows, in the order that `Decoder.grouped` says."""
    out: Matrix
    norm_mlp: Norm | None
    """None: the feed-forward reads what the attention reads (Falcon-7B)."""
    up: Matrix
    gate: Matrix | None
    """With a gate the feed-forward is down(act(gate x) * (up x))."""
    down: Matrix
    scale: float
    """On the attention scores, usually D ** -0.5."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """A whole model."""

    blocks: tuple[Block, ...]
    final: Norm
    head: Matrix
    embedding: Tensor
    """(V, H)."""
    positions: Tensor | None
    """Learned positions, (P, H): row `offset + i` belongs to position i."""
    offset: int
    rotary: Rotary | None
    slopes: Tensor | None
    """ALiBi, (Hq,) float32; see `core.ops.alibi`."""
    heads: int
    kv_heads: int
    head_size: int
    norm_kind: NormKind
    activation: str
    """gelu, gelu_tanh, relu or silu."""
    parallel: bool
    grouped: bool
    """How the rows of `qkv` lie: False: all queries, all keys, all values; True: for every key head its queries, then
    its key, then its value (Falcon)."""

    @property
    def vocab(self) -> int:
        return self.head.rows

    @property
    def hidden(self) -> int:
        return self.embedding.shape[1]

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def max_positions(self) -> int | None:
        """How many positions the model knows; None: any number."""
        return None if self.positions is None else self.positions.shape[0] - self.offset

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def matrices(self) -> list[Matrix]:
        """Every matrix, in a fixed order."""
        found = [self.head]
        for block in self.blocks:
            found += [block.qkv, block.out, block.up, block.down]
            if block.gate is not None:
                found.append(block.gate)
        return found

    def standard_order(self) -> Tensor | None:
        """The row order that turns grouped `qkv` rows into queries, keys, values; None where they lie so already."""
        if not self.grouped or self.kv_heads == 1:
            return None
        rows = torch.arange((self.heads + 2 * self.kv_heads) * self.head_size, device=self.device)
        rows = rows.view(self.kv_heads, self.group + 2, self.head_size)
        queries, keys, values = rows[:, :-2], rows[:, -2], rows[:, -1]
        return torch.cat([queries.flatten(), keys.flatten(), values.flatten()])
