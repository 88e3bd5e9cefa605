"""The interface of a method.

`unchanged` does nothing. A `corpus` method yields text that every family is fine-tuned on: it says how several
models' next-token logits are mixed, the stages do the rest. (`weights` and `decoding` methods join with the issue that brings the first of them.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from unidetox_ray.settings import CorpusSection, Section

if TYPE_CHECKING:
    from unidetox_ray.core.logits import Mixture

Kind = Literal["unchanged", "corpus"]


class NoSettings(Section):
    """A method without settings of its own."""


@dataclass(frozen=True)
class Method:
    """A registered method. Its settings are a frozen pydantic model; modules load no torch on import."""

    name: str
    kind: Kind
    summary: str
    settings: type[Section] = NoSettings


@dataclass(frozen=True)
class CorpusMethod(Method):
    """A method that yields a corpus.

    recipe(settings, experiment's corpus section) -> the corpus section that holds for this method.
    needs_toxic: whether the toxic model takes part. mixture(section) -> how the models' logits become
    scores; the base model is model 0, the toxic one model 1.
    """

    recipe: Callable[[Any, CorpusSection], CorpusSection] = lambda settings, section: section
    needs_toxic: bool = False
    mixture: Callable[[CorpusSection], Mixture] | None = None
