"""How much of everything an experiment does: models, copies, corpora, cells, prompts, texts, tokens. Nothing is run."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unidetox_ray import registry
from unidetox_ray.config import Experiment
from unidetox_ray.experiment import MethodEntry, checked
from unidetox_ray.methods.base import CorpusMethod, Method
from unidetox_ray.methods.clean_text import CLEAN
from unidetox_ray.plan import shapes, texts
from unidetox_ray.plan.counting import Model
from unidetox_ray.plan.texts import Data, Quiz, Tokens
from unidetox_ray.settings import CorpusSection, FinetuneSection, ScratchSection
from unidetox_ray.stages.cells import seeds_of, tuned_families
from unidetox_ray.stages.needs import COPIES, Needed, method_of, needed

#: Settings of a filtered corpus that change its training alone (`stages.select`).
_OF_TRAINING = ("scorer", "training", "epochs", "lr")


@dataclass(frozen=True)
class CorpusAmount:
    """One corpus entry. sequences: decoded. models: in lock-step. judged: texts that a filter scores. rows: of the corpus."""

    entry: MethodEntry
    section: CorpusSection
    rows: int
    sequences: int
    models: tuple[Model, ...]
    judged: int
    reused: bool = False


@dataclass(frozen=True)
class PlannedCell:
    """A cell as far as it is known beforehand. decoders: models that decode in lock-step for it."""

    family: str
    entry: MethodEntry
    seed: int
    kind: str
    decoders: int

    @property
    def label(self) -> str:
        return self.entry.label


class Amounts:
    """Of one experiment. UnidetoxError, one line, for what cannot be known."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.data = Data(experiment)
        self.needed: Needed = needed(experiment)
        self._per_token: dict[str, float] = {}

    def on(self, **cluster: Any) -> Amounts:
        """The same amounts with other settings of the cluster, which change none of them; what was counted is shared."""
        other = copy.copy(self)
        changed = self.experiment.cluster.model_copy(update=cluster)
        other.experiment = self.experiment.model_copy(update={"cluster": changed})
        return other

    @property
    def notes(self) -> list[str]:
        return self.data.notes

    # Models.

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Of the experiment, the base family first, and the judge's where it is one of them."""
        experiment = self.experiment
        found = [experiment.base_family, *experiment.families]
        if experiment.evaluate.ppl_model in experiment.models:
            found.append(str(experiment.evaluate.ppl_model))
        return tuple(dict.fromkeys(found))

    def model(self, family: str) -> Model:
        return shapes.family_model(self.experiment.model_of(family), family)

    def is_scratch(self, family: str) -> bool:
        return self.experiment.model_of(family).source == "scratch:"

    @cached_property
    def judge(self) -> Model | None:
        name = self.experiment.evaluate.ppl_model
        if name is None:
            return None
        return self.model(name) if name in registry.FAMILIES else shapes.judge_model(name)

    @cached_property
    def scorers(self) -> dict[str, Model | None]:
        """By name; None: a word list."""
        return {scorer.name: shapes.scorer_model(scorer) for scorer in self.experiment.evaluate.scorers}

    def per_token(self, family: str) -> float:
        """Characters a token of the family's tokenizer, or of "bert" for scratch classifiers."""
        if family not in self._per_token:
            data = self.experiment.data
            found = texts.CHARACTERS_A_TOKEN
            if family == "bert":
                spec = next(
                    (s.scratch for s in self.experiment.evaluate.scorers if s.source == "scratch:"), None
                )
                if data.scorer is not None and spec is not None:
                    found = texts.characters_a_token(
                        self.data.sample("scorer", [data.scorer], "train"), "bert", spec.vocab_size
                    )
            elif self.is_scratch(family):
                spec = self.experiment.model_of(family).scratch or ScratchSection()
                found = texts.characters_a_token(
                    self.data.sample("pretrain", data.pretrain, "train"), family, spec.vocab_size
                )
            self._per_token[family] = found
        return self._per_token[family]

    # Training data.

    def copy_texts(self, need: str, family: str) -> Tokens:
        """What the toxic model or the expert of a family is trained on."""
        role = "toxic" if need == "toxic" else "clean"
        found = self.data.texts(role, getattr(self.experiment.data, role), "train")
        section = self.experiment.toxic
        return found.tokens(self.per_token(family), int(section.append_eos), section.max_length)

    def copy_steps(self, need: str, family: str) -> int:
        section = self.experiment.toxic
        return section.steps or section.epochs * math.ceil(
            self.copy_texts(need, family).count / section.batch_size
        )

    def corpus_tokens(self, amount: CorpusAmount, family: str) -> Tokens:
        """Rows of a corpus in a family's tokens. Of a model that was pre-trained here on whole texts, its own texts are about as long
        as those; of others, as long as they may be."""
        section, longest = amount.section, self.experiment.finetune.max_length
        base = self.experiment.base_family
        ratio = self.per_token(base) / self.per_token(family)
        if amount.sequences == 0 or not self.is_scratch(base):
            full = texts.constant(amount.rows, min(longest, (section.max_length - 1) * ratio + 1))
            return full
        own = self.decoded_tokens(section)
        return Tokens(amount.rows, (own.lengths * ratio + 1).clip(2, longest))

    def decoded_tokens(self, section: CorpusSection) -> Tokens:
        """New tokens of sampled texts, at most max_length - 1."""
        most = section.max_length - 1
        base, pretrain = self.experiment.base_family, self.experiment.data.pretrain
        if not self.is_scratch(base) or not pretrain:
            return texts.constant(section.num_texts, most)
        found = self.data.texts("pretrain", pretrain[0], "train", limited=False)
        return found.tokens(self.per_token(base), 1, most)

    # Corpora.

    @cached_property
    def corpora(self) -> tuple[CorpusAmount, ...]:
        found: list[CorpusAmount] = []
        seen: set[str] = set()
        base = self.model(self.experiment.base_family)
        limit = self.experiment.limit
        for entry in self.experiment.methods:
            method = method_of(entry)
            if not isinstance(method, CorpusMethod):
                continue
            settings: Any = checked(entry)
            section = method.recipe(settings, self.experiment.corpus)
            if limit is not None:
                section = section.model_copy(update={"num_texts": min(section.num_texts, limit)})
            contrasted = "toxic" in method.needed_for(settings)
            models = (base, base) if contrasted else (base,)
            rows, sequences, judged, reused = section.num_texts, section.num_texts, 0, False
            if section.source != "distil" or method.source == "text":
                sequences = 0
            if method.source == "select":
                same = repr(
                    (entry.method, {k: v for k, v in settings.model_dump().items() if k not in _OF_TRAINING})
                )
                reused = same in seen
                seen.add(same)
                if section.source == "distil":
                    sequences = judged = math.ceil(settings.oversample * section.num_texts)
                    rows = math.ceil(settings.keep * judged)
                else:
                    judged = self._documents(section.source)
            found.append(CorpusAmount(entry, section, rows, sequences, models, judged, reused))
        return tuple(found)

    def _documents(self, source: str) -> int:
        data = self.experiment.data
        return (
            self.data.texts("clean", data.clean, "train").count
            if source == CLEAN and data.clean is not None
            else 0
        )

    # Cells.

    @cached_property
    def cells(self) -> tuple[PlannedCell, ...]:
        found = []
        for family in self.experiment.families:
            for entry in self.experiment.methods:
                method = method_of(entry)
                for seed in seeds_of(self.experiment, entry):
                    found.append(PlannedCell(family, entry, seed, method.kind, self.decoders(entry, method)))
        if any(entry.tune for entry in self.experiment.methods) and self.experiment.tuning.reuse == "both":
            most = sum(bool(e.tune) for e in self.experiment.methods) * (len(self.experiment.families) - 1)
            if most:
                self.data.note(
                    f"cells: up to {most} more, `<label>@own`, where a family's own choice differs from the base family's; they are not in the plan"
                )
        return tuple(found)

    @staticmethod
    def decoders(entry: MethodEntry, method: Method) -> int:
        if method.kind != "decoding":
            return 1
        needs = method.needed_for(checked(entry.variants[-1]))
        return 1 + sum(need in needs for need in COPIES)

    def training_section(self, entry: MethodEntry) -> FinetuneSection:
        """The training of a corpus entry's cells: the largest setting where one is searched or tuned."""
        section = self.experiment.finetune
        search = self.experiment.search
        if search is not None:
            section = section.model_copy(update={"steps": max(search.steps)})
        if entry.tune and "steps" in entry.tune:
            section = section.model_copy(update={"epochs": None, "steps": max(entry.tune["steps"])})
        method = method_of(entry)
        return method.training(checked(entry), section) if isinstance(method, CorpusMethod) else section

    @staticmethod
    def training_steps(section: FinetuneSection, rows: int) -> int:
        return (
            section.steps if section.epochs is None else section.epochs * math.ceil(rows / section.batch_size)
        )

    @property
    def tuned(self) -> Sequence[str]:
        return tuned_families(self.experiment)

    # Evaluation.

    def prompts(self, family: str, split: str | None = None) -> Tokens:
        source, evaluate = self.experiment.data.prompts, self.experiment.evaluate
        found = self.data.texts("prompts", source, split or evaluate.split)
        return found.tokens(
            self.per_token(family), int(evaluate.prompt_bos == "auto" and self.adds_bos(family))
        )

    def selection(self, family: str, per_domain: int | None) -> Tokens:
        """Validation prompts of a search or a tuning."""
        found = self.prompts(family, "validation")
        if per_domain is None:
            return found
        return Tokens(min(found.count, per_domain * self._domains), found.lengths)

    @cached_property
    def _domains(self) -> int:
        source = self.experiment.data.prompts
        if self.data.here("prompts", source):
            return int(self.data.table("prompts", source)["domain"].n_unique())
        return 4  # ToxiGen as the paper groups it

    @staticmethod
    def adds_bos(family: str) -> bool:
        return bool(registry.lookup("families", family).adds_bos)

    def continuation_tokens(self, family: str) -> float:
        """New tokens of a continuation, on average: all of them unless the model was made here and knows short texts."""
        return float(self.experiment.evaluate.max_new_tokens) * (0.85 if self.is_scratch(family) else 1.0)

    @cached_property
    def clean(self) -> Tokens | None:
        data, evaluate = self.experiment.data, self.experiment.evaluate
        if data.clean is None:
            return None
        found = self.data.texts("clean", data.clean, "test")
        return found.tokens(self.per_token(self.experiment.base_family), 1, evaluate.clean_max_length)

    @cached_property
    def quiz(self) -> Quiz | None:
        data = self.experiment.data
        return None if data.mmlu is None else self.data.quiz(data.mmlu, self.experiment.evaluate.mmlu.shots)
