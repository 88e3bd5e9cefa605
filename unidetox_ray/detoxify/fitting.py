"""The settings of one fine-tuning on one device: what the user fixed stays, the rest is chosen, or one line says what would fit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from unidetox_ray.detoxify.room import SHARE, Choice, Device, choose, gib, least, peak_bytes, precisions
from unidetox_ray.errors import ConfigError
from unidetox_ray.plan.counting import Model, counted
from unidetox_ray.plan.memory import trainable_of
from unidetox_ray.settings import FinetuneSection, Precision


@dataclass(frozen=True)
class Fitted:
    """The section with precision and micro_batch set, and the choice behind it."""

    section: FinetuneSection
    choice: Choice
    shape: Model
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

    def smaller(self) -> Fitted | None:
        """The same with half as many texts at once, for where the estimate was too low; None where one is the least."""
        if self.choice.rows <= 1:
            return None
        rows = -(-self.choice.rows // 2)
        peak = peak_bytes(self.shape, self.section, self.section.precision, rows)
        choice = replace(self.choice, rows=rows, pieces=-(-self.section.batch_size // rows), peak=peak)
        return replace(self, section=self.section.model_copy(update={"micro_batch": rows}), choice=choice)


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

    model: of `counting.skeleton`. given: names of fields that the user has set, which are kept: of precision and micro_batch.
    what: of several trainings, the one that is meant. ConfigError: it does not fit, with a setting that would.
    """
    accepted: tuple[Precision, ...] = (
        (section.precision,) if "precision" in given else _accepted(section, device)
    )
    rows = section.micro_batch or section.batch_size if "micro_batch" in given else None
    _refuse_adapters(model, section)
    shape = counted(model, name)
    parameters, trained = trainable_of(shape, section)
    found = choose(shape, section, device, accepted, rows)
    if found is None and rows is not None and "precision" in given:
        # Both are the user's own: an estimate is no reason to refuse what was asked for twice.
        peak = peak_bytes(shape, section, section.precision, rows)
        found = Choice(section.precision, rows, -(-section.batch_size // rows), peak)
    if found is None:
        raise ConfigError(
            f"{what}{name}: {_kind(section)} of {parameters / 1e9:.2f} B parameters needs about "
            f"{gib(least(shape, section, accepted))} at least, and of the {gib(device.memory)} of {device.name or device.kind} "
            f"{gib(SHARE * device.memory)} can be planned with; {_advice(section, shape, device)}"
        )
    micro = 0 if found.pieces == 1 else found.rows
    chosen = section.model_copy(update={"precision": found.precision, "micro_batch": micro})
    return Fitted(chosen, found, shape, trained, parameters)


def _refuse_adapters(model: Any, section: FinetuneSection) -> None:
    """ModelError, with what the model lacks, where the adapter that is asked for cannot stand on it."""
    from unidetox_ray.families.bottleneck import places_of
    from unidetox_ray.families.targets import lora_targets

    if section.adapter == "lora":
        lora_targets(model)
    elif section.adapter == "bottleneck":
        places_of(model)


def _accepted(section: FinetuneSection, device: Device) -> tuple[Precision, ...]:
    return precisions(device, adapters=section.adapter != "none")


def _kind(section: FinetuneSection) -> str:
    return {"none": "full fine-tuning", "lora": "LoRA", "bottleneck": "bottleneck adapters"}[section.adapter]


def _advice(section: FinetuneSection, model: Model, device: Device) -> str:
    """A setting under which the very same calculation fits."""
    changes: list[tuple[str, dict[str, Any]]] = []
    if section.adapter == "none" and model.rank_parameters is not None:
        changes.append(("--adapter lora", {"adapter": "lora"}))
    changes += [(f"max_length={n}", {"max_length": n}) for n in (128, 64, 32) if n < section.max_length]
    for told, change in changes:
        other = section.model_copy(update=change)
        found = choose(model, other, device, _accepted(other, device))
        if found is not None:
            return f"{told} would need about {gib(found.peak)}"
    return "take a smaller model or a larger device, or several GPUs with cluster.workers_per_cell=N deepspeed.stage=3"
