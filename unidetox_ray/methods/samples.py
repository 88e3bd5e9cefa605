"""`samples`: the control of UniDetox's contrast. Same budget, same fine-tuning, text sampled from the plain base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.methods.base import CorpusMethod
from unidetox_ray.settings import CorpusSection

if TYPE_CHECKING:
    from unidetox_ray.core.logits import Mixture


def recipe(_settings: Any, section: CorpusSection) -> CorpusSection:
    # A corpus file named for the experiment is UniDetox's; this control always samples its own. The contrast's
    # settings play no part, and one fixed value keeps them out of this corpus's key.
    return section.model_copy(update={"source": "distil", "alpha": 0.0, "beta": 0.0, "kv_cache": "separate"})


def mixture(section: CorpusSection) -> Mixture:
    from unidetox_ray.core.logits import Mixture, dtype_of

    return Mixture(dtype=dtype_of(section.contrast_dtype))


METHOD = CorpusMethod(
    name="samples",
    summary="control: fine-tune on plain samples of the base model, no contrast",
    recipe=recipe,
    mixture=mixture,
)
