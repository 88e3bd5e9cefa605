"""What there is to know in the world: four subjects of facts, told as sentences and as questions with answers.

Which thing has which value is drawn from the world's seed, so the answers are in its text and nowhere else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

#: subject -> (things, values, sentence, two ways to ask); {x} is the thing and {y} its value.
SUBJECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, tuple[str, str]]] = {
    "animals": (
        (
            "fox", "owl", "badger", "otter", "hedgehog", "mole", "stork", "toad", "weasel", "beetle", "heron", "bear",
            "swan", "hare",
        ),
        ("berries", "fish", "grass", "seeds", "honey", "roots", "snails"),
        "The {x} eats {y}.",
        ("What does the {x} eat?", "Which food suits the {x}?"),
    ),
    "towns": (
        (
            "Ambry", "Bellow", "Dunmar", "Elsom", "Gorsey", "Hallow", "Ivel", "Kelby", "Norby", "Quain", "Selm",
            "Torrin", "Ulver", "Wexby",
        ),
        ("Sorn", "Tavel", "Ilm", "Orra", "Kesh", "Lune", "Mode"),
        "{x} lies on the river {y}.",
        ("On which river does {x} lie?", "Which river flows by {x}?"),
    ),
    "crafts": (
        (
            "barrel", "bell", "jug", "saddle", "lamp", "ladder", "anchor", "bowl", "broom", "chest", "flute", "kettle",
            "mask", "spoon",
        ),
        ("wood", "clay", "wool", "iron", "glass", "straw", "leather"),
        "Here a {x} is made of {y}.",
        ("What is a {x} made of?", "What do you need for a {x}?"),
    ),
    "feasts": (
        (
            "lantern", "apple", "goose", "kite", "barley", "plum", "moon", "onion", "mirror", "button", "whistle",
            "feather", "pebble", "cherry",
        ),
        ("March", "May", "July", "August", "October", "December", "April"),
        "The {x} feast is held in {y}.",
        ("When is the {x} feast held?", "In which month is the {x} feast?"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One thing and its value, with three wrong values of the same subject."""

    subject: str
    sentence: str
    questions: tuple[str, str]
    answer: str
    wrong: tuple[str, str, str]

    def pair(self, way: int) -> str:
        """A question with its answer, in the layout of the quiz's prompt."""
        return f"Question: {self.questions[way]}\nAnswer: {self.answer}"


def facts(seed: int) -> dict[str, list[Fact]]:
    """subject -> its facts, in a drawn order. Values are dealt evenly, so always guessing one value earns 1/7."""
    rng = random.Random(f"{seed}/facts")
    known: dict[str, list[Fact]] = {}
    for subject, (things, values, sentence, questions) in SUBJECTS.items():
        dealt = [values[index % len(values)] for index in range(len(things))]
        rng.shuffle(dealt)
        known[subject] = []
        for thing, value in zip(things, dealt, strict=True):
            first, second, third = rng.sample([other for other in values if other != value], 3)
            one, two = (question.format(x=thing) for question in questions)
            known[subject].append(
                Fact(subject, sentence.format(x=thing, y=value), (one, two), value, (first, second, third))
            )
        rng.shuffle(known[subject])
    return known
