"""`contrastive`: UniDetox's sampler at inference, without distillation (contrastive decoding, Li et al., ACL 2023).

Each token is drawn from softmax((1 + beta) log p_base - beta log p_toxic), at beta = inf from
softmax(log p_base - log p_toxic), over the base model's plausible set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from unidetox_ray.methods.base import DecodingMethod
from unidetox_ray.settings import Beta, Section

if TYPE_CHECKING:
    from unidetox_ray.core.steering import Steering


class Settings(Section):
    alpha: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """The plausible set: tokens with p_base >= alpha * max p_base (Li et al. 2023 and UniDetox: 0.1)."""
    beta: Beta = math.inf
    """The dial. inf: UniDetox's text. 0: the base model, whole vocabulary."""


def steering(
    settings: Any, models: Mapping[str, Any], tokenizers: Mapping[str, Any], _fit_folder: Path | None
) -> Steering:
    """The base model against its toxic copy; ModelError when their vocabularies differ."""
    from unidetox_ray.core.logits import contrastive
    from unidetox_ray.core.steering import check_agreement, weighted

    check_agreement(models, tokenizers)
    if settings.beta == 0.0:  # nothing to contrast, hence nothing to protect against: no plausible set
        return weighted([(models["base"], 1.0)])
    mixture = contrastive(alpha=settings.alpha, beta=settings.beta)
    parts = zip((models["base"], models["toxic"]), mixture.weights, strict=True)
    return weighted(list(parts), alpha=settings.alpha)


METHOD = DecodingMethod(
    name="contrastive",
    summary="decode with the base model against its toxic copy, in the base model's plausible set",
    settings=Settings,
    needs=frozenset({"toxic"}),
    strength="beta",
    steering=steering,
)
