"""A toxicity classifier that really tells, trained in seconds on the embedded world; files of generations."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from unidetox_ray.data.base import load
from unidetox_ray.settings import ScratchSection
from unidetox_ray.stages.classifier import train_classifier


@pytest.fixture(scope="session")
def comments():
    """World comments with labels: text, toxic (bool)."""
    table = load("scorer", dataset="world").table
    return [(row["text"], row["toxic"] > 0.5) for row in table.iter_rows(named=True)]


@pytest.fixture(scope="session")
def judge(tmp_path_factory) -> Path:
    """Folder of a BERT with toxic-bert's six labels."""
    place = tmp_path_factory.mktemp("scorers") / "judge"
    spec = ScratchSection(steps=150, lr=3e-3, batch_size=32, vocab_size=400, length=48)
    about = train_classifier(load("scorer", dataset="world").table, spec, place, "cpu")
    assert about["auc"] > 0.95
    return place


@pytest.fixture(scope="session")
def texts(comments):
    """`texts(n, share, seed)`: n texts, about that share of them toxic."""

    def made(n: int, share: float, seed: int = 0) -> list[str]:
        draw = random.Random(seed)
        toxic, clean = ([text for text, label in comments if label is kind] for kind in (True, False))
        return [draw.choice(toxic if draw.random() < share else clean) for _ in range(n)]

    return made


@pytest.fixture
def write(tmp_path):
    """`write(name, rows)`: a JSONL file in the test's folder."""

    def made(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return made
