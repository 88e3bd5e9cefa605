"""`task_arithmetic` (Ilharco et al., ICLR 2023): subtract from the weights what toxic fine-tuning added to them.

tau = theta_toxic - theta; theta_new = theta - lambda * tau, tensor by tensor. The toxic model is the family's own, the
one that every other method of the run uses too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from unidetox_ray.methods.base import NOTHING, Need, WeightsMethod
from unidetox_ray.settings import Section

if TYPE_CHECKING:
    from torch import Tensor

    from unidetox_ray.core.weights import Part


class Settings(Section):
    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """lambda, the dial. 0: the base model. 1: the whole vector once, our default; the paper chooses lambda per model
    on held-out data and names no fixed value."""
    exclude_embeddings: bool = False
    """true: input, output and position embeddings stay as they are (ours)."""
    exclude_norms: bool = False
    """true: scales and shifts of norms stay as they are (ours)."""
    dtype: Literal["base", "fp32"] = "base"
    """What the edited weights are stored in. base: as the base model; a small vector may then vanish in rounding."""
    toxic_model: str | None = None
    """A toxic model of one's own: a model folder, or the folder of a LoRA adapter on the base model; `{family}` stands
    for the family's name. null: the one that the stage `toxic` makes."""


def narrowed(settings: Any) -> frozenset[Need]:
    return NOTHING if settings.toxic_model is not None else frozenset({"toxic"})


def edits(part: Part, settings: Any) -> bool:
    excluded = {"embedding": settings.exclude_embeddings, "norm": settings.exclude_norms}
    return settings.strength != 0.0 and not excluded.get(part.role, False)


def edit(_part: Part, base: Tensor, toxic: Tensor, settings: Any) -> Tensor:
    """base - lambda (toxic - base), fp32; exactly the base at lambda = 0 and exactly the toxic tensor at -1."""
    import torch

    return torch.lerp(base, toxic, -float(settings.strength))


METHOD = WeightsMethod(
    name="task_arithmetic",
    summary="subtract the toxic model's difference from the base model's weights",
    settings=Settings,
    needs=frozenset({"toxic"}),
    narrowed=narrowed,
    strength="strength",
    edits=edits,
    edit=edit,
    step=lambda settings: float(settings.strength),
    given=lambda settings: settings.toxic_model,
    dtype=lambda settings: {"base": None, "fp32": "float32"}[settings.dtype],
)
