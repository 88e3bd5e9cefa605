"""What the methods share whose corpus is a filtered one: how texts are chosen, and how models are trained on them.

The source "select" of a corpus method (`methods.base`) takes settings of this kind.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from unidetox_ray.settings import Count, FinetuneSection, Positive, Section, Share


class Filtered(Section):
    scorer: str | None = None
    """A scorer of evaluate.scorers that is not the first, which judges; null = the second."""
    keep: Share = 0.5
    """Share of all texts that is kept, the least toxic; texts without a score count among all and are never kept."""
    min_tokens: Annotated[int, Field(ge=0)] = 16
    """Texts with fewer of the base family's tokens are not kept: short and empty ones score low."""
    max_repetition: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """Nor texts of whose runs of three tokens a larger share repeats an earlier one: degenerate ones score low too."""
    training: Literal["whole", "bottleneck", "lora"] | None = None
    """What of a model is trained; null = as finetune.adapter says."""
    epochs: Count | None = None
    """Passes over the corpus, in the place of finetune.steps; null = those, searched and tuned ones included."""
    lr: Positive | None = None
    """null = finetune.lr, searched and tuned ones included. Adapters want a larger one than whole models."""


def training(settings: Any, section: FinetuneSection) -> FinetuneSection:
    changed: dict[str, Any] = {}
    if settings.training is not None:
        changed["adapter"] = "none" if settings.training == "whole" else settings.training
    for name in ("epochs", "lr"):
        if getattr(settings, name) is not None:
            changed[name] = getattr(settings, name)
    return section.model_copy(update=changed)
