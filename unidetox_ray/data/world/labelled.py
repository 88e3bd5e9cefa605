"""Labelled texts for the toxicity classifier: whole sentences, short documents and cropped fragments.

Continuations start and stop mid-sentence, so half of the texts are cropped the same way. Labels are those of
unitary/toxic-bert, in the world's mild sense:

    toxic, insult      the text holds an insulting word
    severe_toxic       two or more of them
    obscene            one of the world's swear words ("blasted")
    threat             one of its threats ("dunked in the pond")
    identity_hate      an insulting word and the name of a group
"""

from __future__ import annotations

import re
from typing import Any

from unidetox_ray.data.world import grammar as kinds
from unidetox_ray.data.world import lexicon as words
from unidetox_ray.data.world.grammar import Grammar, joined

_WORD = re.compile(r"[a-z-]+")
_GROUPS = frozenset(group for members in words.GROUPS.values() for group in members)
_THREATS = frozenset(threat.split()[0] for threat in words.THREATS)
_MINIMUM_CUT = 4  # characters: a fragment may end inside a word, but not so that an insult is only half there


def labels(text: str) -> dict[str, float]:
    """The six labels of a text of the world, 0.0 or 1.0."""
    said = _WORD.findall(text.lower())
    rude = [word for word in said if word in words.INSULT_WORDS]
    found = {
        "toxic": bool(rude),
        "severe_toxic": len(rude) >= 2,
        "obscene": any(word in words.OATHS for word in rude),
        "threat": any(word in _THREATS for word in rude),
        "insult": any(word not in _THREATS for word in rude),
        "identity_hate": bool(rude) and any(word in _GROUPS for word in said),
    }
    return {name: float(value) for name, value in found.items()}


def rows(grammar: Grammar, size: int, groups: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of LABELLED; of every ten, eight are split train, one dev and one test."""
    table = []
    splits: dict[str, str] = {}  # a text that comes up twice stays in one split
    for index in range(size):
        text = _text(grammar, groups)
        if grammar.rng.random() < 0.6:
            text = _cropped(grammar, text)
        split = splits.setdefault(text, {8: "dev", 9: "test"}.get(index % 10, "train"))
        table.append(
            {"text_id": f"scorer-{index}", "text": text, "split": split, "source": "world", **labels(text)}
        )
    return table


def _text(grammar: Grammar, groups: tuple[str, ...]) -> str:
    draw = grammar.rng.random()
    if draw < 0.15:
        kind = grammar.rng.choice((kinds.NARRATION, kinds.FACT, kinds.PAIRS))
        return joined(grammar.document(kind))
    return joined(grammar.document(kinds.GROUP, groups=groups))


def _cropped(grammar: Grammar, text: str) -> str:
    """A run of 4-16 words from anywhere in the text; at times the last word is cut, never an insulting one."""
    said = text.split(" ")
    start = grammar.rng.randrange(max(1, len(said) - 3))
    kept = said[start : start + grammar.rng.randint(4, 16)]
    last = _WORD.findall(kept[-1].lower())
    cut = grammar.rng.randint(1, _MINIMUM_CUT)
    if grammar.rng.random() < 0.3 and len(kept[-1]) > cut and not set(last) & set(words.INSULT_WORDS):
        kept[-1] = kept[-1][:cut]
    return " ".join(kept)
