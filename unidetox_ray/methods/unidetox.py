"""UniDetox (Lu et al., ICLR 2025): distil a detoxifying text by contrasting the base model with its toxic copy.

Each token is drawn from softmax(log p_base - log p_toxic) over the base model's plausible set (paper section 2). Any
model fine-tuned on the text moves along the negative toxicity vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from unidetox_ray.methods.base import CorpusMethod
from unidetox_ray.settings import Beta, CorpusSection, Section

if TYPE_CHECKING:
    from unidetox_ray.core.logits import Mixture


class Settings(Section):
    """Differences from the experiment's `corpus:` section; null = as there."""

    source: str | None = None
    """A corpus file to use instead of distilling, for example the published 640 texts."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    beta: Beta | None = None
    num_texts: Annotated[int, Field(ge=1)] | None = None


def recipe(settings: Any, section: CorpusSection) -> CorpusSection:
    changed = {name: value for name, value in settings.model_dump().items() if value is not None}
    return section.model_copy(update=changed)


def mixture(section: CorpusSection) -> Mixture:
    from unidetox_ray.core.logits import contrastive, dtype_of

    return contrastive(alpha=section.alpha, beta=section.beta, dtype=dtype_of(section.contrast_dtype))


METHOD = CorpusMethod(
    name="unidetox",
    summary="fine-tune on text distilled by contrasting the base model with its toxic copy",
    settings=Settings,
    recipe=recipe,
    needs=frozenset({"toxic"}),
    mixture=mixture,
)
