"""The interfaces of a method: four kinds, one dataclass each.

    unchanged   nothing is done: the row that every other is compared with
    corpus      text that every family is fine-tuned on; the stages sample or read it and train
    weights     the parameters are edited tensor by tensor; the cell's model is a folder of its own
    decoding    the base model is steered at every step; the cell's model is the base plus what steers it

A method is one file with one `METHOD` and one line in `registry.METHODS`. What has to be made before it is named by
`needs`, made once per family and shared by every method that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unidetox_ray.settings import CorpusSection, FinetuneSection, Section

if TYPE_CHECKING:
    from torch import Tensor

    from unidetox_ray.core.logits import Mixture
    from unidetox_ray.core.steering import Steering
    from unidetox_ray.core.weights import Part

Kind = Literal["unchanged", "corpus", "weights", "decoding"]
Need = Literal["toxic", "expert", "fit"]
"""toxic: the family's base fine-tuned on data.toxic. expert: the same recipe on the training part of data.clean.
fit: the method's own artefact, made by its `fit`."""

NOTHING: frozenset[Need] = frozenset()


class NoSettings(Section):
    """A method without settings of its own."""


@dataclass(frozen=True)
class FitTexts:
    """What a method's `fit` may learn from: the training parts of data.toxic and data.clean, in their stored order."""

    toxic: Sequence[str]
    clean: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registered method. Its settings are a frozen pydantic model; modules load no torch on import.

    needs: what has to exist per family before it; `needed_for(settings)` narrows that for one method entry.
    strength: the name of the setting that is the dial; at `neutral` the model is the base, bit for bit in fp32.
    """

    name: str
    kind: Kind
    summary: str
    settings: type[Section] = NoSettings
    needs: frozenset[Need] = NOTHING
    narrowed: Callable[[Any], frozenset[Need]] | None = None
    """settings -> the needs that hold for them, where a setting makes one needless."""
    strength: str | None = None
    neutral: float = 0.0

    def needed_for(self, settings: Any) -> frozenset[Need]:
        """What has to be made for an entry with these settings."""
        return self.needs if self.narrowed is None else self.narrowed(settings)


@dataclass(frozen=True, kw_only=True)
class UnchangedMethod(Method):
    """The model as it is."""

    kind: Kind = "unchanged"


def _same_section(_settings: Any, section: CorpusSection) -> CorpusSection:
    return section


def _same_training(_settings: Any, section: FinetuneSection) -> FinetuneSection:
    return section


@dataclass(frozen=True, kw_only=True)
class CorpusMethod(Method):
    """A method that yields a corpus, which every family is fine-tuned on.

    The need `toxic` is the base family's toxic model alone: the corpus is made once, on the base family.
    """

    kind: Kind = "corpus"
    source: Literal["sample", "text", "select"] = "sample"
    """sample: decoded here by `mixture`. text: real text, read. select: sampled or read, scored, the least toxic kept;
    its settings are a `methods.filtered.Filtered`."""
    recipe: Callable[[Any, CorpusSection], CorpusSection] = _same_section
    """(settings, the experiment's corpus section) -> the corpus section that holds for this method."""
    mixture: Callable[[CorpusSection], Mixture] | None = None
    """How the models' logits become scores (`sample`, `select`); the base model is model 0, the toxic one model 1."""
    training: Callable[[Any, FinetuneSection], FinetuneSection] = _same_training
    """(settings, the finetune section, searched values included) -> the finetune section of this method's cells."""


def _every_part(_part: Part, _settings: Any) -> bool:
    return True


def _nothing_given(_settings: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class WeightsMethod(Method):
    """A method that edits parameters.

    edit(part, base, toxic, settings) -> the new tensor. part: the tensor's name and role; base, toxic: fp32, equal
    shapes, read-only. The result: fp32, the same shape. Called once per floating-point tensor, tied ones once.
    """

    kind: Kind = "weights"
    edit: Callable[[Part, Tensor, Tensor, Any], Tensor]
    edits: Callable[[Part, Any], bool] = _every_part
    """(part, settings) -> whether it is edited; the others keep the base's bits."""
    step: Callable[[Any], float] | None = None
    """settings -> the length of theta_new - theta over that of theta_toxic - theta, edited tensors only, where the
    method fixes it; the saved model is then held to it."""
    given: Callable[[Any], str | None] = _nothing_given
    """settings -> the folder of a toxic model of the user's own, `{family}` in it for the family's name."""
    dtype: Callable[[Any], str | None] = _nothing_given
    """settings -> what the model is stored in ("float32"); None: as the base."""


def _nothing_told(_settings: Any, _facts: Mapping[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class DecodingMethod(Method):
    """A method that steers the base model while it decodes.

    steering(settings, models, tokenizers, fit_folder) -> Steering. models and tokenizers: "base" and each of the
    models that `needed_for(settings)` names ("toxic", "expert"), opened; fit_folder: what `fit` left, or None.

    fit(model, tokenizer, texts, settings, folder, device, seed) -> facts for the manifest (plain values): writes
    safetensors into `folder`. Its result is keyed by model, data and the settings named in `fit_settings`.
    """

    kind: Kind = "decoding"
    steering: Callable[[Any, Mapping[str, Any], Mapping[str, Any], Path | None], Steering]
    fit: Callable[[Any, Any, FitTexts, Any, Path, str, int], dict[str, Any]] | None = None
    fit_settings: frozenset[str] = frozenset()
    told: Callable[[Any, Mapping[str, Any]], dict[str, Any]] = _nothing_told
    """(settings, the facts of its fit) -> what a cell's settings say of the two together."""
