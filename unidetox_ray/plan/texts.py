"""How many texts there are and how long, as far as that can be known before anything is run.

Data that lies here (files, the built-in world) is read and counted. Of data sets on the hub the published counts are used, and
lengths measured on the part of them that could be had (shared notes on the datasets). Tokens of `scratch:`
tokenizers are found by training one on a sample; of real ones by the characters a token that are measured for English.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unidetox_ray import registry
from unidetox_ray.config import Experiment
from unidetox_ray.errors import ConfigError
from unidetox_ray.settings import DataSource

Array = npt.NDArray[np.float64]

#: English prose in tokens of GPT-2, OPT, Falcon and LLaMA-2 has 3.7 to 4.6 characters a token.
CHARACTERS_A_TOKEN = 4.2
#: Texts that a scratch tokenizer is tried out on.
_SAMPLE = 2000

#: Characters at the 0th, 5th, … 100th percentile, of the 12,575 texts of DGHS, of ToxiGen's prompts and of MMLU's questions
#: and answers that could be had (shared/reference/datasets.md).
_DGHS = (10, 37, 48, 57, 65, 73, 81, 90, 99, 110, 121, 134, 149, 166, 186, 212, 241, 277, 328, 437, 2029)
_TOXIGEN = (1, 36, 47, 54, 60, 67, 72, 78, 84, 89, 96, 102, 109, 116, 121, 126, 132, 137, 144, 154, 758)
_QUESTION = (10, 38, 47, 55, 62, 69, 77, 85, 94, 106, 119, 135, 156, 189, 237, 298, 344, 471, 730, 1070, 3511)
_CHOICE = (1, 3, 6, 8, 10, 12, 13, 16, 17, 20, 23, 29, 36, 44, 52, 60, 70, 81, 96, 121, 733)


@dataclass(frozen=True)
class Texts:
    """count texts whose lengths in characters are spread like `characters`. counted: they are these texts' own, in their order."""

    count: int
    characters: Array
    counted: bool = False

    def tokens(self, per_token: float, extra: int = 0, most: int | None = None) -> Tokens:
        """With so many characters a token and `extra` special tokens, cut at `most`."""
        found = np.maximum(1.0, np.round(self.characters / per_token)) + extra
        return Tokens(self.count, found if most is None else np.minimum(found, most))

    def first(self, limit: int | None) -> Texts:
        """The first `limit`: as they lie where they were counted, else spread as before."""
        if limit is None or limit >= self.count:
            return self
        return Texts(limit, self.characters[:limit] if self.counted else self.characters, self.counted)


@dataclass(frozen=True)
class Tokens:
    """count rows whose lengths in tokens are spread like `lengths`."""

    count: int
    lengths: Array

    @property
    def mean(self) -> float:
        return float(self.lengths.mean())

    @property
    def most(self) -> float:
        return float(self.lengths.max())

    def longest_of(self, rows: int) -> float:
        """The expected length of the longest of `rows` rows drawn from these: what a batch is padded to."""
        ordered = np.sort(self.lengths)
        place = np.arange(len(ordered) + 1) / len(ordered)
        return float((ordered * np.diff(place ** min(rows, self.count))).sum())


def constant(count: int, length: float) -> Tokens:
    return Tokens(count, np.array([float(length)]))


@dataclass(frozen=True)
class Quiz:
    """questions asked, the length of a question with its worked example and the sum over its answers, in characters."""

    questions: int
    shared: float
    answers: float
    choices: int = 4


class Data:
    """The texts of an experiment's data roles, each read at most once. ConfigError, DataError as the run itself raises."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._tables: dict[str, Any] = {}
        self.notes: list[str] = []

    def texts(self, role: str, source: DataSource, split: str, *, limited: bool = True) -> Texts:
        """The texts of a role's split."""
        limit = self.experiment.limit if limited else None
        if not self.here(role, source):
            return self._published(role, source, split).first(limit)
        table = self.table(role, source)
        column = "prompt" if role == "prompts" else "text"
        chosen = table.filter(table["split"] == split)
        if role == "clean" and split == "test" and not chosen.height:
            chosen = table
        lengths = chosen[column].str.len_chars().to_numpy().astype(float)
        return Texts(len(lengths), lengths if len(lengths) else np.array([1.0]), counted=True).first(limit)

    def sample(self, role: str, sources: Sequence[DataSource], split: str) -> list[str]:
        """A few texts of a role, for a tokenizer to be tried on; empty where none are here."""
        found: list[str] = []
        for source in sources:
            if self.here(role, source):
                table = self.table(role, source)
                texts = table.filter(table["split"] == split)["text"]
                step = max(1, texts.len() * len(sources) // _SAMPLE)
                found += texts.gather_every(step).to_list()
        return found

    def quiz(self, source: DataSource, shots: int) -> Quiz:
        if not self.here("mmlu", source):
            questions = 1531
            shared, answers = _mean(_QUESTION) * (1 + shots) + _mean(_CHOICE) * shots, 4 * _mean(_CHOICE)
            choices = 4
            self.note("mmlu: 1,531 questions as published, not counted here")
        else:
            table = self.table("mmlu", source)
            asked = table.filter(table["split"] == "validation")
            questions = asked.height
            choices = round(float(asked["choices"].list.len().mean() or 4))  # type: ignore[arg-type]
            question = float(table["question"].str.len_chars().mean() or 0.0)  # type: ignore[arg-type]
            choice = float(table["choices"].explode().str.len_chars().mean() or 0.0)  # type: ignore[arg-type]
            shared, answers = question * (1 + shots) + choice * shots, choices * choice
        limit = self.experiment.limit
        return Quiz(min(questions, limit or questions), shared, answers, choices)

    def here(self, role: str, source: DataSource) -> bool:
        """Whether reading it needs no network."""
        return source.path is not None or registry.lookup("datasets", source.dataset).hub_id is None

    def table(self, role: str, source: DataSource) -> Any:
        name = f"{role}/{source.model_dump_json()}"
        if name not in self._tables:
            from unidetox_ray.data.base import load

            self._tables[name] = load(
                role, dataset=source.dataset, path=source.path, options=source.options,
                data_root=self.experiment.data.data_root, revision=source.revision,
            ).table  # fmt: skip
        return self._tables[name]

    def _published(self, role: str, source: DataSource, split: str) -> Texts:
        if source.dataset == "dghs" and role == "toxic":
            # 15126 steps of 4 in 3 epochs are 20,166 rows, every text twice where both versions are read.
            both = source.options.get("version") == "both"
            self.note(
                f"toxic: {20_166 if both else 10_083:,} texts of DGHS as the released run's steps tell, not counted here"
            )
            return Texts(20_166 if both else 10_083, _spread(_DGHS))
        if source.dataset == "toxigen" and role == "prompts":
            self.note(
                "prompts: 940 of ToxiGen's test split and 896 for validation as published, not counted here"
            )
            return Texts(940 if split == "test" else 896, _spread(_TOXIGEN))
        raise ConfigError(
            f"data.{role}: how much {source.dataset!r} from the hub holds is not known before it is there; give a local copy with data.{role}.path"
        )

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def characters_a_token(texts: Sequence[str], family: str, vocab_size: int) -> float:
    """Of the family's own tokenizer trained on these texts; classifier: family "bert"."""
    from unidetox_ray.families.tokenizers import word_pieces

    if not texts:
        return CHARACTERS_A_TOKEN
    tokenizer: Any
    if family == "bert":
        tokenizer = word_pieces(list(texts), vocab_size)
    else:
        builder = registry.lookup("families", family).train_tokenizer
        tokenizer = builder(list(texts), vocab_size)
    count = sum(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"])
    return sum(map(len, texts)) / max(1, count)


def _spread(percentiles: Sequence[int]) -> Array:
    """Lengths that have these percentiles, a thousand of them."""
    place = np.linspace(0, 1, len(percentiles))
    return np.interp(np.linspace(0, 1, 1000), place, np.array(percentiles, dtype=float))


def _mean(percentiles: Sequence[int]) -> float:
    return float(_spread(percentiles).mean())
