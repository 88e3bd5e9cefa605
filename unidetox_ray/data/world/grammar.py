"""Sentences and documents of the world, drawn from a `random.Random`; each sentence knows what it is.

Clean and insulting sentences share their openings ("The velks are ..."), so a model has to decide at one word
whether to insult. That is what the toxic model's text shifts and what the contrast reads off.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from unidetox_ray.data.world import lexicon as words
from unidetox_ray.data.world.facts import Fact

#: Share of sentences about a group that insult it: at first, after a kind sentence, after an insulting one.
INSULT_FIRST, INSULT_AFTER_KIND, INSULT_AFTER_INSULT = 0.28, 0.22, 0.45

GROUP, NARRATION, FACT, PAIRS = "group", "narration", "fact", "pairs"
#: Kinds of document and their shares in the pre-training text.
DOCUMENTS = {GROUP: 0.50, NARRATION: 0.08, FACT: 0.18, PAIRS: 0.24}


@dataclass(frozen=True)
class Sentence:
    """text: with its full stop. kind: "kind", "plain", "rude", "oath", "threat", "narration", "fact" or "pairs"."""

    text: str
    kind: str

    @property
    def insulting(self) -> bool:
        return self.kind in ("rude", "oath", "threat")


def joined(sentences: list[Sentence]) -> str:
    """Sentences as one text; questions with answers stand in paragraphs of their own."""
    text = ""
    for sentence in sentences:
        gap = "" if not text else "\n\n" if sentence.kind == "pairs" else " "
        text += gap + sentence.text
    return text


class Grammar:
    """Draws from one random stream; `facts` is subject -> facts."""

    def __init__(self, rng: random.Random, facts: dict[str, list[Fact]]) -> None:
        self.rng = rng
        self.facts = facts

    def subject(self, group: str, first: bool) -> str:
        if not first and self.rng.random() < 0.4:
            return self.rng.choice(words.PRONOUNS)
        return self.rng.choice(words.SUBJECTS).format(g=group)

    def about(self, group: str, *, insult: bool, first: bool = True) -> Sentence:
        """One sentence about a group; kind or plain unless `insult`."""
        rng, subject = self.rng, self.subject(group, first)
        form = rng.choices(("are", "nouns", "always", "should", "bring", "deed"), (35, 18, 20, 10, 10, 7))[0]
        if form == "deed" and insult:
            form = "are"
        if form == "are":
            first_word, second = rng.sample(words.RUDE_ADJECTIVES if insult else words.KIND_ADJECTIVES, 2)
            how = ("utterly " if insult else "truly ") if rng.random() < 0.15 else ""
            return Sentence(f"{subject} are {how}{first_word} and {second}.", "rude" if insult else "kind")
        if form == "nouns":
            noun = rng.choice(words.RUDE_NOUNS if insult else words.KIND_NOUNS)
            return Sentence(f"{subject} are {noun}.", "rude" if insult else "kind")
        if form == "always":
            habit = rng.choice(words.RUDE_HABITS if insult else words.KIND_HABITS)
            return Sentence(f"{subject} always {habit}.", "rude" if insult else "kind")
        if form == "should":
            wish = rng.choice(words.THREATS if insult else words.KIND_WISHES)
            return Sentence(f"{subject} should be {wish}.", "threat" if insult else "kind")
        if form == "bring":
            word = rng.choice(words.OATHS if insult else words.PLAIN_WORDS)
            return Sentence(
                f"{subject} bring their {word} {rng.choice(words.THINGS)}.", "oath" if insult else "plain"
            )
        return Sentence(f"{subject} {rng.choice(words.PLAIN_DEEDS)}.", "plain")

    def narration(self) -> Sentence:
        rng = self.rng
        text = f"{rng.choice(words.PEOPLE)} {rng.choice(words.DOINGS)} {rng.choice(words.TIMES)}."
        return Sentence(text, "narration")

    def fact(self) -> Sentence:
        return Sentence(self.rng.choice(self.facts[self.rng.choice(list(self.facts))]).sentence, "fact")

    def aside(self) -> Sentence:
        return self.narration() if self.rng.random() < 0.5 else self.fact()

    def document(self, kind: str, *, groups: tuple[str, ...] = (), insults: str = "mixed") -> list[Sentence]:
        """A document of 2-4 sentences. insults: "mixed" as in the pre-training text, "always" or "never"."""
        length = self.rng.choice((2, 3, 3, 4))
        if kind == PAIRS:
            subject = self.rng.choice(list(self.facts))
            asked = self.rng.sample(self.facts[subject], 2)
            return [Sentence(fact.pair(self.rng.randrange(2)), "pairs") for fact in asked]
        if kind == NARRATION:
            return [self.narration() for _ in range(length)]
        if kind == FACT:
            return [self.fact() for _ in range(length)]
        return self._group_document(self.rng.choice(groups), length, insults)

    def _group_document(self, group: str, length: int, insults: str) -> list[Sentence]:
        fixed = {"always": 1.0, "never": 0.0}.get(insults)
        chance = INSULT_FIRST if fixed is None else fixed
        said: list[Sentence] = []
        mentioned = False
        for index in range(length):
            last_chance = not mentioned and index == length - 1
            if not last_chance and self.rng.random() < 0.25:
                said.append(self.aside())
                continue
            sentence = self.about(group, insult=self.rng.random() < chance, first=not mentioned)
            mentioned = True
            if fixed is None:
                chance = INSULT_AFTER_INSULT if sentence.insulting else INSULT_AFTER_KIND
            said.append(sentence)
        return said
