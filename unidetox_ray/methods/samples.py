"""`samples`: the control of UniDetox's contrast. Same budget, same fine-tuning, text sampled from the plain base model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unidetox_ray.methods.base import CorpusMethod
from unidetox_ray.settings import CorpusSection

if TYPE_CHECKING:
    from torch import Tensor


def recipe(_settings: Any, section: CorpusSection) -> CorpusSection:
    # A corpus file named for the experiment is UniDetox's; this control always samples its own. The contrast's
    # settings play no part, and one fixed value keeps them out of this corpus's key.
    return section.model_copy(update={"source": "distil", "alpha": 0.0, "beta": 0.0, "kv_cache": "separate"})


def scores(_section: CorpusSection) -> Callable[[list[Tensor]], Tensor]:
    from unidetox_ray.core.decode import only_model

    return only_model


METHOD = CorpusMethod(
    name="samples",
    kind="corpus",
    summary="control: fine-tune on plain samples of the base model, no contrast",
    recipe=recipe,
    scores=scores,
)
