"""Experiments and folders to be examined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_experiment import small_experiment

from unidetox_ray.config import Experiment, load
from unidetox_ray.doctor import Line, Subject, examine


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """An experiment file that needs no hub, with changes."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "experiment.yaml"
        own = {"methods": ["base", "unidetox"], "storage": str(tmp_path / "outputs")}
        path.write_text(json.dumps(small_experiment("local", **{**own, **changes})), encoding="utf-8")
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
