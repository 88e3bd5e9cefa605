"""The precision and the batch of a fine-tuning that fit into a device's memory: arithmetic, no device is asked.

The estimate is the plan's (`plan.memory.training`) of one worker without compiled blocks, which keep less.
docs/detoxify.md has the comparison with measured peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unidetox_ray.plan import memory
from unidetox_ray.plan.counting import Model
from unidetox_ray.settings import FinetuneSection, Precision

GIB = 2**30
#: Share of the device's memory that is planned with; the rest is the libraries' own, fragments and what else runs there.
SHARE = 0.9


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


def peak_bytes(model: Model, section: FinetuneSection, precision: Precision, rows: int) -> int:
    """The estimated peak of a step of `section.batch_size` texts of `section.max_length` tokens, `rows` of them at once."""
    tried = section.model_copy(update={"precision": precision, "micro_batch": rows})
    return int(memory.training(model, tried, section.batch_size, section.max_length, 1, compiled=False).peak)


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
    model: Model,
    section: FinetuneSection,
    device: Device,
    accepted: Sequence[Precision],
    rows: int | None = None,
) -> Choice | None:
    """The most exact of `accepted` and the most rows at once that fit; None where nothing does.

    rows: that many and no other. The batch of a step is `section.batch_size` texts whatever is chosen.
    """
    size = section.batch_size
    ways = splits(size) if rows is None else [(min(rows, size), -(-size // rows))]
    for precision in accepted:
        for at_once, pieces in ways:
            peak = peak_bytes(model, section, precision, at_once)
            if peak <= SHARE * device.memory:
                return Choice(precision, at_once, pieces, peak)
    return None


def least(model: Model, section: FinetuneSection, accepted: Sequence[Precision]) -> int:
    """Bytes of the smallest training that `choose` could name."""
    return min(
        peak_bytes(model, section, precision, rows)
        for precision in accepted
        for rows, _ in splits(section.batch_size)
    )


def gib(count: float) -> str:
    """Bytes as people read them; below a GiB in MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
