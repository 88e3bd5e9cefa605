"""Scorers that have a name: published classifiers pinned by revision and, where it is known, by the hash of their weights.

Where the pins come from (looked up in November 2026 in stored copies of the hub's pages, and in public code that pins the same):

    toxic-bert        revision 4d6c22e merges pull request 8, whose model.safetensors has this SHA-256 on its page; public code
                      checks this hash at this revision
    toxigen-roberta   main holds pickled weights only; pull request 1 (bd3c36d, by the hub's own converter, never merged) holds
                      model.safetensors with this SHA-256 on its page
    hate-dynabench    revision 391c99a is the last one and holds model.safetensors; its hash was not found: pinned by revision
    roberta-toxicity  revision 048c25b is the last one and holds pickled weights only, with this SHA-256 since its first commit

Labels of toxic-bert and roberta-toxicity are from their config pages; LABEL_1 and hate of the other two are what public code
that uses them takes for toxic. A config without such a label is refused when the scorer is opened.

A judge from another family sees other things than toxic-bert; it is also trained on other text. What each was trained on stands
beside it, for no judge is independent of text it has learnt from: DGHS is what UniDetox's toxic model is made with, ToxiGen is
where its prompts come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from unidetox_ray import registry
from unidetox_ray.errors import ConfigError


@dataclass(frozen=True)
class Pin:
    """A published classifier. label: the one whose probability is the score.

    sha256: of model.safetensors, None = not known. pickled: SHA-256 of pytorch_model.bin where the repository has nothing else,
    which has to be converted once.
    """

    source: str
    revision: str
    sha256: str | None
    label: str
    activation: Literal["auto", "sigmoid", "softmax"]
    family: str
    trained_on: str
    licence: str
    pickled: str | None = None


PINNED = {
    "toxic-bert": Pin(
        "unitary/toxic-bert",
        "4d6c22e74ba2fdd26bc4f7238f50766b045a0d94",
        "2c272885d24138df70bff1b3cd944a999bd6b41dad33209730aa8ba074f6ad09",
        "toxic",
        "sigmoid",
        "BERT base",
        "Jigsaw 2018 (Wikipedia talk pages)",
        "Apache-2.0",
    ),
    "toxigen-roberta": Pin(
        "tomh/toxigen_roberta",
        "bd3c36d7dc6424a02a599879b02b4faadfc246f5",
        "9d888301604c56209d69b8268a46745c79aad5b08c6c1068be24536431284980",
        "LABEL_1",
        "softmax",
        "RoBERTa large",
        "ToxiGen (machine-written statements about groups)",
        "see its card",
    ),
    "hate-dynabench": Pin(
        "facebook/roberta-hate-speech-dynabench-r4-target",
        "391c99ab8b3f65beb77746a2cf6ddf1ddf9817e6",
        None,
        "hate",
        "softmax",
        "RoBERTa base",
        "DGHS (hate speech written to fool a model)",
        "see its card",
    ),
    "roberta-toxicity": Pin(
        "s-nlp/roberta_toxicity_classifier",
        "048c25bb1e199b98802784f96325f4840f22145d",
        None,
        "toxic",
        "softmax",
        "RoBERTa base",
        "Jigsaw 2018, 2019 and 2020",
        "OpenRAIL++",
        pickled="896f52af161757594994d1fefe85ac79cbb57c9a96b26fba8ab93139b6426b8c",
    ),
}


def pin_at(source: Any) -> Pin | None:
    """The pin of a hub id; None for any other."""
    return next((pin for pin in PINNED.values() if pin.source == source), None)


def pin_of(name: str) -> Pin:
    """The pin of a name. ConfigError for a name that is none, or whose repository has no safetensors, with what to do."""
    if name not in PINNED:
        raise ConfigError(f"scorer {name!r} is not known; {registry.suggest(name, PINNED)}")
    pin = PINNED[name]
    if pin.pickled is not None:
        raise ConfigError(
            f"scorer {name}: {pin.source} has .bin (pickle) weights only, which are not opened, for they can run code; run once "
            f"`unidetox convert {pin.source} --revision {pin.revision} --sha256 {pin.pickled} --out scorers/{name}` and give the "
            f"folder scorers/{name} as the scorer (label {pin.label})"
        )
    return pin


def warning_of(name: str, found: str | None) -> str | None:
    """What to tell of a scorer whose weights have no known hash, with the hash that was found; None where one is pinned."""
    pin = PINNED[name]
    if pin.sha256 is not None:
        return None
    seen = f"its model.safetensors hashes to {found}" if found else "it has no single file of weights to hash"
    return f"scorer {name}: pinned by revision {pin.revision[:7]} alone, for no hash of its weights was known; {seen}"
