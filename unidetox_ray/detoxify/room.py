"""What a fine-tuning needs of a device's memory, and the precision and batch that fit: arithmetic, no device is asked.

Bytes a parameter (weights + gradients + AdamW's two moments, + the bfloat16 working copy of bf16_master):

    fp32         4 + 4 + 8          frozen: 4
    bf16_pure    2 + 2 + 4          frozen: 2
    bf16_master  4 + 4 + 8 + 2 + 2  frozen: 2    (DeepSpeed's sharding optimiser on one worker)

Activations of a token: 12 hidden + 5 feed-forward values a layer, which keeps eager GPT-2 XL within 1 GiB of what an H200
used, and 12 bytes for each of the vocabulary's logits. docs/detoxify.md has the comparison with measured peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unidetox_ray.settings import Precision

GIB = 2**30
#: Share of the device's memory that is planned with; the rest is the libraries' own, fragments and what else runs there.
SHARE = 0.9
_LAYER_HIDDEN, _LAYER_WIDE = 12, 5
_LOGIT_BYTES = 12
#: weights, gradients, AdamW's moments of a trained parameter; bytes of a frozen one; bytes of an activation.
_BYTES: dict[Precision, tuple[int, int, int, int, int]] = {
    "fp32": (4, 4, 8, 4, 4),
    "bf16_master": (4 + 2, 4 + 2, 8, 2, 2),
    "bf16_pure": (2, 2, 4, 2, 2),
}


@dataclass(frozen=True)
class Shape:
    """What of a model and its adapters decides the memory of a training. parameters: numbers, tied ones once."""

    parameters: int
    trained: int
    layers: int
    hidden: int
    widest: int
    """Values of the feed-forward layer that a token goes through; all of a router's chosen experts together."""
    vocab: int


@dataclass(frozen=True)
class Device:
    """kind: cuda or cpu. memory: bytes in all. bf16: whether it computes in bfloat16 at speed."""

    kind: str
    memory: int
    bf16: bool
    name: str = ""


@dataclass(frozen=True)
class Choice:
    """rows: of a batch at once; pieces: of that many rows make the batch. peak: estimated bytes."""

    precision: Precision
    rows: int
    pieces: int
    peak: int


def peak_bytes(shape: Shape, precision: Precision, *, rows: int, pieces: int, length: int) -> int:
    """The estimated peak of a training step of `pieces` times `rows` texts of at most `length` tokens.

    In one piece, the gradients come as the activations go; in several, the first piece's stay while the next is read.
    DeepSpeed sets its buffers of gradients aside from the beginning.
    """
    weights, gradients, moments, frozen, item = _BYTES[precision]
    held = (weights + moments) * shape.trained + frozen * (shape.parameters - shape.trained)
    gradient = gradients * shape.trained
    tokens = rows * length
    width = _LAYER_HIDDEN * shape.hidden + _LAYER_WIDE * shape.widest
    work = tokens * (shape.layers * width * item + shape.vocab * _LOGIT_BYTES)
    together = pieces > 1 or precision == "bf16_master"
    return held + (gradient + work if together else max(gradient, work))


def precisions(device: Device, *, adapters: bool) -> tuple[Precision, ...]:
    """What may be chosen on a device, the most exact first. Adapters gain nothing from bf16_pure: the model is frozen."""
    if device.kind != "cuda" or not device.bf16:
        return ("fp32",)
    return ("bf16_master",) if adapters else ("bf16_master", "bf16_pure")


def splits(batch_size: int) -> list[tuple[int, int]]:
    """(rows, pieces) that make up a batch: all at once, then halves, down to single rows."""
    found, rows = [], batch_size
    while True:
        found.append((rows, -(-batch_size // rows)))
        if rows == 1:
            return found
        rows = -(-rows // 2)


def choose(
    shape: Shape,
    device: Device,
    *,
    batch_size: int,
    length: int,
    accepted: Sequence[Precision],
    rows: int | None = None,
) -> Choice | None:
    """The most exact of `accepted` and the most rows at once that fit; None where nothing does.

    rows: that many and no other. The batch of a step is `batch_size` texts whatever is chosen.
    """
    ways = splits(batch_size) if rows is None else [(min(rows, batch_size), -(-batch_size // rows))]
    for precision in accepted:
        for at_once, pieces in ways:
            peak = peak_bytes(shape, precision, rows=at_once, pieces=pieces, length=length)
            if peak <= SHARE * device.memory:
                return Choice(precision, at_once, pieces, peak)
    return None


def least(shape: Shape, accepted: Sequence[Precision], *, batch_size: int, length: int) -> int:
    """Bytes of the smallest training that `choose` could name."""
    return min(
        peak_bytes(shape, precision, rows=rows, pieces=pieces, length=length)
        for precision in accepted
        for rows, pieces in splits(batch_size)
    )


def gib(count: float) -> str:
    """Bytes as people read them; below a GiB in MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
