"""Experiments and folders to be examined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unidetox_ray.config import Experiment, load
from unidetox_ray.doctor import Line, Subject, examine

SHAPE = {"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 320, "max_positions": 64, "steps": 10, "length": 32}  # fmt: skip
LOCAL = {
    "name": "local", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base", "unidetox"],
    "models": {"gpt2": {"source": "scratch:", "scratch": SHAPE}},
    "data": {**dict.fromkeys(("toxic", "prompts", "clean"), "world"), "mmlu": None, "pretrain": ["world"]},
    "evaluate": {"ppl_model": None, "scorers": [{"name": "words", "kind": "lexicon", "source": "world"}]},
    "tracking": {"uri": "none"},
}  # fmt: skip


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """An experiment file that needs no hub, with changes."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(
            json.dumps({**LOCAL, "storage": str(tmp_path / "outputs"), **changes}), encoding="utf-8"
        )
        return path

    return write


@pytest.fixture
def experiment(write) -> Callable[..., Experiment]:
    return lambda **changes: load(write(**changes))


@pytest.fixture
def looked(experiment) -> Callable[..., list[Line]]:
    """Lines of one check on an experiment with changes."""

    def looked(check: str, address: str | None = None, **changes: Any) -> list[Line]:
        found = experiment(**changes)
        return examine(Subject(found, found.storage, address), [check])

    return looked
