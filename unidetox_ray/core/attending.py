"""Who attends to whom in a training batch, decided here so that no model asks its device about padding.

Given a 2-D mask, the models look whether it holds a 0, and wait for the device to say so, in every forward. Rows are
padded on the right: under a causal mask no token sees padding anyway. So they get that mask ready-made, and position
numbers with it. Several texts in one row (packing) differ only in whom the mask lets through and where positions restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unidetox_ray.core.labelled import predicted
from unidetox_ray.core.loss import IGNORE

#: Largest difference of a log-probability (nats) that rounding explains, by dtype of the model.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.05}
#: How configs name the most positions that a token looks back.
_WINDOWS = ("sliding_window", "attention_window", "window_size", "attention_chunk_size")
#: Kinds of layers that look at every position, or back as far as such a window. Others may do otherwise beyond some length
#: that a short trial does not reach (sparse attention to the best 2,048, compressed positions).
_KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
#: What a model raises that cannot take the mask or the positions.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


def causal(positions: int, segments: Tensor | None, device: torch.device) -> Tensor:
    """(1, 1, T, T) bool, or (B, 1, T, T) with segments (B, T) int64: True where the query (row) may see the key.

    With segments, only keys of the query's own segment. No device is waited for.
    """
    order = torch.arange(positions, device=device)
    visible = (order[:, None] >= order[None, :])[None, None]
    if segments is None:
        return visible
    return visible & (segments[:, None, :, None] == segments[:, None, None, :])


def takes_masks(model: nn.Module, length: int) -> bool:
    """Whether the model reads a ready-made causal mask as it reads padding, tried on two rows of ids.

    False for a model that attends through anything but torch's scaled_dot_product_attention, whose window is shorter
    than `length`, that builds its positions from the mask (ALiBi), or whose predictions differ.
    """
    if not _sees_all(model, length):
        return False
    rows = _probe_rows(model, (7, 4))
    try:
        apart = [_log_probabilities(model, [row]) for row in rows]
        together = _log_probabilities(model, rows, masked=True)
    except REFUSALS:
        return False
    return _gap(torch.cat(apart), together) <= TOLERANCE.get(_dtype(model), 0.0)


def packing_gap(model: nn.Module) -> float:
    """Largest difference (nats) of a token's log-probability in a packed row and on its own; inf where it fails.

    Three texts of different lengths; 0 up to rounding exactly when the model keeps them apart and counts positions anew.
    """
    rows = _probe_rows(model, (6, 4, 5))
    try:
        apart = torch.cat([_log_probabilities(model, [row]) for row in rows])
        packed = _log_probabilities(
            model, [[token for row in rows for token in row]], masked=True, lengths=[6, 4, 5]
        )
    except REFUSALS:
        return float("inf")
    return _gap(apart, packed)


def keeps_apart(model: nn.Module, length: int) -> bool:
    """Whether texts packed into rows of `length` tokens stay without influence on one another; see `packing_gap`."""
    return _sees_all(model, length) and packing_gap(model) <= TOLERANCE.get(_dtype(model), 0.0)


def _sees_all(model: nn.Module, length: int) -> bool:
    """Attends through torch's scaled_dot_product_attention, and to all of `length` positions (no sliding window)."""
    config: Any = getattr(model, "config", None)
    if config is None or getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    text = config.get_text_config(decoder=True)
    if not set(getattr(text, "layer_types", None) or ()) <= _KNOWN_LAYERS:
        return False
    named = text.to_dict()
    # Of a window that differs from layer to layer, the config's own value says nothing.
    layers = [values for values in (named.get("per_layer_config") or {}).values() if isinstance(values, dict)]
    windows = [values.get(name) for values in (named, *layers) for name in _WINDOWS]
    return not any(isinstance(window, int) and 0 < window < length for window in windows)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _probe_rows(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    vocab = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(0, vocab, (sum(lengths),), generator=torch.Generator().manual_seed(0)).tolist()
    return [ids[sum(lengths[:index]) : sum(lengths[: index + 1])] for index in range(len(lengths))]


def _gap(a: Tensor, b: Tensor) -> float:
    gap = float((a - b).abs().max())
    return gap if gap == gap else float("inf")


def _log_probabilities(
    model: Any, rows: Sequence[Sequence[int]], *, masked: bool = False, lengths: Sequence[int] = ()
) -> Tensor:
    """(N,) float32 of every token but each text's first. lengths: of the texts that the only row consists of."""
    device, width = next(model.parameters()).device, max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = labels[index, : len(row)] = torch.tensor(row)
    segments, positions = None, torch.arange(width).expand(len(rows), -1)
    if lengths:
        numbers = torch.tensor(lengths)
        segments = torch.repeat_interleave(torch.arange(len(lengths)), numbers)[None]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        labels[0, positions[0] == 0] = IGNORE
    given: dict[str, Any] = {}
    if masked:
        moved = None if segments is None else segments.to(device)
        given = {"attention_mask": causal(width, moved, device), "position_ids": positions.to(device)}
    with _evaluating(model):
        logits = model(input_ids=ids.to(device), use_cache=False, **given).logits.float().cpu()
    where, wanted = predicted(labels)
    chosen = torch.log_softmax(logits.reshape(-1, logits.shape[-1])[where], dim=-1)
    return chosen.gather(-1, wanted[:, None])[:, 0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
