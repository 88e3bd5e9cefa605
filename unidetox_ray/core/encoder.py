"""The forward pass of a BERT-like sequence classifier on the CPU without padding, down to its first position.

Texts of a batch lie one after another in one (tokens, H) matrix, so that no product is spent on padding; attention
runs over the texts of equal length together. Only a text's first position reaches the classifier, so that the last
layer computes nothing else for the others than their keys and values. Products run on packed weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unidetox_ray.core.linear import Matrix, Packed, packing_works


class _Layer:
    """One post-norm layer's weights; attribute names are those of Hugging Face's BERT and RoBERTa."""

    def __init__(self, layer: Any, *, last: bool) -> None:
        one, out = layer.attention.self, layer.attention.output
        # The last layer asks for the first positions only: its queries are a product of their own.
        self.query = _packed(one.query) if last else None
        self.joined = _packed(one.key, one.value) if last else _packed(one.query, one.key, one.value)
        self.heads, self.width = int(one.num_attention_heads), int(one.query.weight.shape[0])
        self.out, self.attention_norm = _packed(out.dense), out.LayerNorm
        self.up, self.down = _packed(layer.intermediate.dense), _packed(layer.output.dense)
        self.norm = layer.output.LayerNorm

    def after(self, mixed: Tensor, residual: Tensor) -> Tensor:
        """What follows the attention: both (rows, H)."""
        x = _norm(self.attention_norm, self.out(mixed).add_(residual))
        return _norm(self.norm, self.down(self.up(x, "gelu")).add_(x))


class PackedEncoder:
    """Logits of a float32 BERT- or RoBERTa-like classifier, (texts, labels). `of` says whether a model is one."""

    def __init__(self, model: Any) -> None:
        self.model, self.embeddings = model, model.base_model.embeddings
        layers = list(model.base_model.encoder.layer)
        self.layers = [_Layer(layer, last=layer is layers[-1]) for layer in layers]
        self.pooler = getattr(model.base_model, "pooler", None)
        # RoBERTa counts positions from its padding id + 1.
        self.first_position = 0 if self.pooler is not None else int(self.embeddings.padding_idx) + 1

    @classmethod
    def of(cls, model: Any) -> PackedEncoder | None:
        """None where the model is built otherwise or does not give the same logits as its own forward."""
        if not packing_works() or any(
            parameter.dtype != torch.float32 or parameter.device.type != "cpu"
            for parameter in model.parameters()
        ):
            return None
        config = model.config
        if getattr(config, "hidden_act", None) != "gelu" or getattr(config, "is_decoder", False):
            return None
        texts = [
            [(17 * i + 5 * length + 3) % int(config.vocab_size) for i in range(length)]
            for length in (7, 7, 3, 1)
        ]
        with torch.inference_mode():
            try:
                found = cls(model)
                made = found.logits(texts, [[0] * len(text) for text in texts])
            except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
                # Built otherwise than the layers above are read; its own forward serves.
                return None
            wanted = torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts])
        # Weights that are not finite are unequal to themselves: the model itself shall say so.
        return found if torch.allclose(made, wanted, rtol=1e-5, atol=1e-5) else None

    def logits(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> Tensor:
        """Token ids and segment ids of each text, at least one a text -> (texts, labels) float32.

        Neighbours of equal length attend together, so that texts should come sorted by length.
        """
        lengths = [len(text) for text in ids]
        x = self.embeddings(
            input_ids=torch.tensor([[token for text in ids for token in text]]),
            token_type_ids=torch.tensor([[kind for text in types for kind in text]]),
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None] + self.first_position,
        )[0]
        x = functional.pad(x, (0, 0, 0, steady(len(x)) - len(x)))
        runs = [(length, len(list(same))) for length, same in groupby(lengths)]
        for layer in self.layers[:-1]:
            x = layer.after(_attention(layer, layer.joined(x), runs), x)
        spare = [0] * (steady(len(lengths)) - len(lengths))
        last, firsts = self.layers[-1], x[torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist() + spare]
        assert last.query is not None
        x = last.after(_first_attention(last, last.query(firsts), last.joined(x), runs), firsts)[:, None]
        logits: Tensor = self.model.classifier(x if self.pooler is None else self.pooler(x))
        return logits[: len(lengths)]


def steady(rows: int) -> int:
    """At least `rows`, at most an eighth or 15 more: eight numbers between a power of two and the next."""
    step = max(16, 1 << max(0, rows.bit_length() - 4))
    return -(-rows // step) * step


def _attention(layer: _Layer, three: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """three (tokens, 3 H): queries, keys and values side by side -> (tokens, H)."""
    mixed, start = torch.zeros(len(three), layer.width), 0
    for length, texts in runs:
        stop = start + length * texts
        parts = three[start:stop].view(texts, length, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        mixed[start:stop].view(texts, length, layer.heads, -1).copy_(found.transpose(1, 2))
        start = stop
    return mixed


def _first_attention(layer: _Layer, query: Tensor, two: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """query (texts, H) of the first positions, two (tokens, 2 H) keys and values -> (texts, H)."""
    mixed, start, done = torch.zeros_like(query), 0, 0
    for length, texts in runs:
        stop = start + length * texts
        keys, values = two[start:stop].view(texts, length, 2, layer.heads, -1).permute(2, 0, 3, 1, 4)
        asked = query[done : done + texts].view(texts, layer.heads, 1, -1)
        found = functional.scaled_dot_product_attention(asked, keys, values)
        mixed[done : done + texts] = found.reshape(texts, layer.width)
        start, done = stop, done + texts
    return mixed


def _packed(*layers: nn.Linear) -> Packed:
    """Several layers of the same input as one product."""
    return Packed(Matrix(tuple((layer.weight, layer.bias) for layer in layers)))


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
