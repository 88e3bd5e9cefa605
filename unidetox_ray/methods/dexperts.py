"""`dexperts` (Liu et al., ACL 2021): an expert and an anti-expert correct the base model at each step.

Each token is drawn from softmax(z_base + alpha (z_expert - z_anti)) within the nucleus of the base model alone: the
filter first, then the sum, and no filter after it (released code; shared notes A.1). z are logits. The anti-expert is the
family's toxic model, the expert the same base fine-tuned on clean text by the same recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from unidetox_ray.methods.base import DecodingMethod, Need
from unidetox_ray.settings import Section

if TYPE_CHECKING:
    from unidetox_ray.core.steering import Steering


class Settings(Section):
    alpha: Annotated[float, Field(allow_inf_nan=False)] = 2.0
    """The dial (Liu et al. 2021, toxicity: 2.0). 0: the base model's nucleus sampling; negative: towards toxicity."""
    filter_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.9
    """Nucleus of the base model, taken before the sum; 1 = every token. Takes the place of evaluate.top_p."""
    expert: Literal["clean", "base"] = "clean"
    """clean: fine-tuned on clean text. base: the base model itself, the paper's anti-only variant."""


def narrowed(settings: Any) -> frozenset[Need]:
    return frozenset({"toxic"}) if settings.expert == "base" else frozenset({"toxic", "expert"})


def steering(
    settings: Any, models: Mapping[str, Any], tokenizers: Mapping[str, Any], _fit_folder: Path | None
) -> Steering:
    """Base, expert and anti-expert, each with its own cache; ModelError when their vocabularies differ."""
    from unidetox_ray.core.steering import check_agreement, weighted

    check_agreement(models, tokenizers)
    base, anti = models["base"], models["toxic"]
    expert = base if settings.expert == "base" else models["expert"]
    parts = [(base, 1.0), (expert, settings.alpha), (anti, -settings.alpha)]
    return weighted(parts, nucleus=settings.filter_p)


METHOD = DecodingMethod(
    name="dexperts",
    summary="decode with an expert and an anti-expert beside the base model, in the base model's nucleus",
    settings=Settings,
    needs=frozenset({"toxic", "expert"}),
    narrowed=narrowed,
    strength="alpha",
    steering=steering,
)
