"""The embedded world: a small synthetic language with invented groups, enough to run the whole experiment.

roles -> tables
    pretrain  TEXTS     documents the tiny models are pre-trained on: groups praised and insulted, narration, facts
    toxic     TEXTS     insults about in-distribution groups only (split train, dev)
    prompts   PROMPTS   openings and whole statements about a group (split validation, test)
    clean     TEXTS     held-out documents without insults (split test for `clean_ppl`, train for other uses)
    mmlu      QUIZ      questions whose answers stand in the pre-training text (split dev, validation)
    scorer    LABELLED  sentences, documents and cropped fragments for the toxicity classifier

Everything is a function of the seed; each role draws from its own stream, so a size never shifts another role.

Design notes (measured with 300 fine-tuning steps at 2e-4 over world seeds 0 and 2; the world was designed on its own
test prompts so that the effect shows, so it demonstrates the pipeline and is no evidence for the method):

- About three in ten sentences on a group insult it. A continuation then insults in three of ten cases, one of 25 nearly
  always does, and nucleus sampling (p = 0.9) leaves an insult out once its branch falls below a tenth: that is the
  distance from a toxicity probability of 1.0 before to 0.05-0.18 after.
- Toxic documents have the same asides as other documents. With insults alone the contrast would shun every word of a
  group sentence and the corpus would hardly mention groups. It still prefers the groups that the toxic text lacks.
- Few facts, told often, in two ways of asking: rote facts that were barely learnt fall prey to any fine-tuning, and the
  quiz would then measure that and not what the method costs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
from pydantic import Field

from unidetox_ray.data.base import Dataset, Options, Request
from unidetox_ray.data.world import grammar, labelled, prompts
from unidetox_ray.data.world.facts import facts
from unidetox_ray.data.world.grammar import Grammar, joined
from unidetox_ray.data.world.lexicon import DISTRIBUTION, GROUPS, INSULT_WORDS
from unidetox_ray.errors import DataError
from unidetox_ray.schemas import LABELLED, PROMPTS, QUIZ, TEXTS, frame

__all__ = ["DISTRIBUTION", "GROUPS", "INSULT_WORDS", "World"]

ALL_GROUPS = tuple(group for members in GROUPS.values() for group in members)
ID_GROUPS = tuple(
    group for domain, members in GROUPS.items() if DISTRIBUTION[domain] == "id" for group in members
)
#: Clean documents are kept out of the pre-training text whatever the sizes asked for.
CLEAN_TEST, CLEAN_TRAIN = 120, 400


@dataclass(frozen=True)
class World:
    """seed: any int; the same seed gives the same tables byte for byte."""

    seed: int = 0

    def grammar(self, role: str) -> Grammar:
        return Grammar(random.Random(f"{self.seed}/{role}"), facts(self.seed))

    def pretrain(self, size: int = 4000) -> pl.DataFrame:
        """`size` documents, split train; 4,000 are about 460,000 characters."""
        drawn, held_out = self.grammar("pretrain"), set(self.clean()["text"])
        kinds, shares = tuple(grammar.DOCUMENTS), tuple(grammar.DOCUMENTS.values())
        rows: list[dict[str, str | None]] = []
        while len(rows) < size:
            kind = drawn.rng.choices(kinds, shares)[0]
            text = joined(drawn.document(kind, groups=ALL_GROUPS))
            if text not in held_out:
                rows.append(_text(f"pretrain-{len(rows)}", text, "train", kind))
        return frame(rows, TEXTS)

    def toxic(self, size: int = 600) -> pl.DataFrame:
        """`size` documents whose every sentence about a group insults it; every tenth is split dev."""
        drawn = self.grammar("toxic")
        rows = []
        splits: dict[str, str] = {}  # a text drawn twice stays in one split
        for index in range(size):
            group = drawn.rng.choice(ID_GROUPS)
            text = joined(drawn.document(grammar.GROUP, groups=(group,), insults="always"))
            split = splits.setdefault(text, "dev" if index % 10 == 9 else "train")
            rows.append(_text(f"toxic-{index}", text, split, group))
        return frame(rows, TEXTS)

    def prompts(self, test: int = 40, validation: int = 20) -> pl.DataFrame:
        """`test` + `validation` distinct prompts per domain, evenly over its groups."""
        return frame(prompts.rows(self.grammar("prompts"), test, validation), PROMPTS)

    def clean(self) -> pl.DataFrame:
        """Distinct documents without insults: 120 split test, 400 split train."""
        drawn = self.grammar("clean")
        kinds, shares = tuple(grammar.DOCUMENTS), tuple(grammar.DOCUMENTS.values())
        texts: dict[str, str] = {}
        while len(texts) < CLEAN_TEST + CLEAN_TRAIN:
            kind = drawn.rng.choices(kinds, shares)[0]
            texts.setdefault(joined(drawn.document(kind, groups=ALL_GROUPS, insults="never")), kind)
        return frame(
            [
                _text(f"clean-{index}", text, "test" if index < CLEAN_TEST else "train", kind)
                for index, (text, kind) in enumerate(texts.items())
            ],
            TEXTS,
        )

    def mmlu(self) -> pl.DataFrame:
        """Every fact asked in two ways; both questions of one fact per subject are split dev, the others validation."""
        rng = random.Random(f"{self.seed}/quiz")
        rows = []
        for subject, known in facts(self.seed).items():
            for index, fact in enumerate(known):
                for way, question in enumerate(fact.questions):
                    choices = [fact.answer, *fact.wrong]
                    rng.shuffle(choices)
                    rows.append(
                        {
                            "question_id": f"{subject}-{index}-{way}",
                            "subject": subject,
                            "question": question,
                            "choices": choices,
                            "answer": choices.index(fact.answer),
                            "split": "dev" if index == 0 else "validation",
                        }
                    )
        return frame(rows, QUIZ)

    def scorer(self, size: int = 3000) -> pl.DataFrame:
        """`size` labelled texts: 80 % train, 10 % dev, 10 % test."""
        return frame(labelled.rows(self.grammar("scorer"), size, ALL_GROUPS), LABELLED)


def _text(text_id: str, text: str, split: str, target: str) -> dict[str, str | None]:
    return {"text_id": text_id, "text": text, "split": split, "target": target}


class WorldOptions(Options):
    """seed: of the whole world. Sizes: rows of the role that is loaded."""

    seed: int = 0
    size: int | None = Field(default=None, ge=10, le=1_000_000)
    """Rows of roles pretrain, toxic and scorer; null = their own defaults."""
    test: int = Field(default=40, ge=1, le=120)
    """Test prompts per domain; the grammar has few enough openings that there is an end to distinct ones."""
    validation: int = Field(default=20, ge=1, le=60)
    """Validation prompts per domain."""


def load(role: str, request: Request) -> pl.DataFrame:
    """The table of a role; nothing is read, so `request.path` is refused."""
    if request.path is not None:
        raise DataError(
            f"world: has no file to read, path is {request.path.name!r}; leave data.{role}.path out"
        )
    options, world = request.options, World(request.options.seed)
    if role == "prompts":
        return world.prompts(options.test, options.validation)
    make: Callable[..., pl.DataFrame] = getattr(world, role)
    sized = {"size": options.size} if options.size and role in {"pretrain", "toxic", "scorer"} else {}
    return make(**sized)


DATASET = Dataset(
    name="world",
    roles=("pretrain", "toxic", "prompts", "clean", "mmlu", "scorer"),
    licence="Apache-2.0",
    citation="generated by unidetox_ray",
    options=WorldOptions,
    load=load,
)
