"""The settings of one fine-tuning on one device: what the user fixed stays, the rest is chosen, or one line says what would fit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from unidetox_ray.detoxify.room import SHARE, Choice, Device, choose, gib, least, peak_bytes, precisions
from unidetox_ray.detoxify.shape import shape_of
from unidetox_ray.errors import ConfigError
from unidetox_ray.settings import FinetuneSection, Precision


@dataclass(frozen=True)
class Fitted:
    """The section with precision and micro_batch set, and the choice behind it."""

    section: FinetuneSection
    choice: Choice
    trained: int
    parameters: int

    def told(self, device: Device) -> str:
        """One line for a person."""
        choice, size = self.choice, self.section.batch_size
        rows = (
            f"{choice.rows} texts at once"
            if choice.pieces == 1
            else f"{choice.pieces} x {choice.rows} texts a step"
        )
        share = "" if self.trained == self.parameters else f", {self.trained:,} of them trained"
        return (
            f"{device.name or device.kind} with {gib(device.memory)}: {choice.precision}, batch of {size} in {rows}, "
            f"about {gib(choice.peak)} for {self.parameters:,} parameters{share}"
        )


def fitted(
    section: FinetuneSection,
    model: Any,
    device: Device,
    *,
    name: str,
    given: Collection[str] = (),
    what: str = "",
) -> Fitted:
    """The section as it will be trained.

    model: of `shape.skeleton`. given: names of fields that the user has set, which are kept: of precision and micro_batch.
    what: of several trainings, the one that is meant. ConfigError: it does not fit, with a setting that would.
    """
    accepted: tuple[Precision, ...] = (
        (section.precision,) if "precision" in given else _accepted(section, device)
    )
    rows = section.micro_batch or section.batch_size if "micro_batch" in given else None
    shape = shape_of(model, section)
    found = choose(
        shape, device, batch_size=section.batch_size, length=section.max_length, accepted=accepted, rows=rows
    )
    if found is None and rows is not None and "precision" in given:
        # Both are the user's own: an estimate is no reason to refuse what was asked for twice.
        pieces = -(-section.batch_size // rows)
        peak = peak_bytes(shape, section.precision, rows=rows, pieces=pieces, length=section.max_length)
        found = Choice(section.precision, rows, pieces, peak)
    if found is None:
        needs = least(shape, accepted, batch_size=section.batch_size, length=section.max_length)
        raise ConfigError(
            f"{what}{name}: {_kind(section)} of {shape.parameters / 1e9:.2f} B parameters needs about {gib(needs)} at least, "
            f"and of the {gib(device.memory)} of {device.name or device.kind} {gib(SHARE * device.memory)} can be planned with; "
            f"{_advice(section, model, device)}"
        )
    micro = 0 if found.pieces == 1 else found.rows
    chosen = section.model_copy(update={"precision": found.precision, "micro_batch": micro})
    return Fitted(chosen, found, shape.trained, shape.parameters)


def _accepted(section: FinetuneSection, device: Device) -> tuple[Precision, ...]:
    return precisions(device, adapters=section.adapter != "none")


def _kind(section: FinetuneSection) -> str:
    return {"none": "full fine-tuning", "lora": "LoRA", "bottleneck": "bottleneck adapters"}[section.adapter]


def _advice(section: FinetuneSection, model: Any, device: Device) -> str:
    """A setting under which the very same calculation fits."""
    if section.adapter == "none":
        other = section.model_copy(update={"adapter": "lora"})
        found = choose(
            shape_of(model, other), device, batch_size=other.batch_size, length=other.max_length,
            accepted=_accepted(other, device),
        )  # fmt: skip
        if found is not None:
            return f"--adapter lora would need about {gib(found.peak)}"
    shape = shape_of(model, section)
    for length in (128, 64, 32):
        if length < section.max_length:
            found = choose(
                shape,
                device,
                batch_size=section.batch_size,
                length=length,
                accepted=_accepted(section, device),
            )
            if found is not None:
                return f"max_length={length} would need about {gib(found.peak)}"
    return "take a smaller model or a larger device, or several GPUs with cluster.workers_per_cell=N deepspeed.stage=3"
