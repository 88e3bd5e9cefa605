"""Scorers that have a name: pinned by revision, and by the hash of their weights where it is known."""

from __future__ import annotations

from dataclasses import dataclass

from unidetox_ray.metrics.classifier import Activation


@dataclass(frozen=True)
class Pin:
    """A published classifier. `label`: the one whose probability is the score."""

    source: str
    revision: str
    sha256: str | None
    label: str
    activation: Activation = "auto"


PINNED = {
    "toxic-bert": Pin("unitary/toxic-bert", "4d6c22e74ba2fdd26bc4f7238f50766b045a0d94", None, "toxic", "sigmoid"),
}
