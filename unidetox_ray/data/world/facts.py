"""What there is to know in the world: four subjects of facts, told as sentences and as questions with answers.

Which thing has which value is drawn from the world's seed, so the answers are in its text and nowhere else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

#: subject -> (things, values, sentence, question); {x} is the thing and {y} its value.
SUBJECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, str]] = {
    "animals": (
        (
            "fox", "owl", "badger", "otter", "hedgehog", "mole", "stork", "toad", "weasel", "crane", "beetle", "ram",
            "pony", "heron", "mouse", "bear", "swan", "hare", "crow", "snake", "duck", "lynx", "wasp", "pig",
            "trout", "finch", "newt", "elk",
        ),
        ("berries", "fish", "grass", "seeds", "honey", "roots", "snails"),
        "The {x} eats {y}.",
        "What does the {x} eat?",
    ),
    "towns": (
        (
            "Ambry", "Bellow", "Cask", "Dunmar", "Elsom", "Firth", "Gorsey", "Hallow", "Ivel", "Jarrow", "Kelby",
            "Lorne", "Marsk", "Norby", "Oakham", "Pell", "Quain", "Rudby", "Selm", "Torrin", "Ulver", "Varn",
            "Wexby", "Yarm", "Zell", "Arden", "Brack", "Corby",
        ),
        ("Sorn", "Tavel", "Ilm", "Orra", "Kesh", "Lune", "Mode"),
        "{x} lies on the river {y}.",
        "On which river does {x} lie?",
    ),
    "crafts": (
        (
            "barrel", "bell", "rope", "jug", "saddle", "lamp", "blanket", "ladder", "anchor", "bowl", "broom", "chest",
            "candle", "flute", "glove", "hammer", "kettle", "mask", "needle", "oar", "plate", "ribbon", "spoon",
            "tent", "violin", "wagon", "yoke", "basket",
        ),
        ("wood", "clay", "wool", "iron", "glass", "straw", "leather"),
        "Here a {x} is made of {y}.",
        "What is a {x} made of?",
    ),
    "feasts": (
        (
            "lantern", "apple", "goose", "kite", "barley", "plum", "thunder", "moon", "onion", "mirror", "button",
            "whistle", "feather", "pebble", "cherry", "shadow", "thistle", "ember", "cloud", "ribbon-day", "acorn",
            "ladle", "sparrow", "willow", "marble", "puppet", "frost", "compass",
        ),
        ("March", "May", "July", "August", "October", "December", "April"),
        "The {x} feast is held in {y}.",
        "When is the {x} feast held?",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One thing and its value, with three wrong values of the same subject."""

    subject: str
    sentence: str
    question: str
    answer: str
    wrong: tuple[str, str, str]

    @property
    def pair(self) -> str:
        """The question with its answer, in the layout of the quiz's prompt."""
        return f"Question: {self.question}\nAnswer: {self.answer}"


def facts(seed: int) -> dict[str, list[Fact]]:
    """subject -> its facts, in a drawn order. Values are dealt evenly, so guessing one value always earns 1/7."""
    rng = random.Random(f"{seed}/facts")
    known: dict[str, list[Fact]] = {}
    for subject, (things, values, sentence, question) in SUBJECTS.items():
        dealt = [values[index % len(values)] for index in range(len(things))]
        rng.shuffle(dealt)
        known[subject] = []
        for thing, value in zip(things, dealt, strict=True):
            first, second, third = rng.sample([other for other in values if other != value], 3)
            known[subject].append(
                Fact(
                    subject,
                    sentence.format(x=thing, y=value),
                    question.format(x=thing),
                    value,
                    (first, second, third),
                )
            )
        rng.shuffle(known[subject])
    return known
