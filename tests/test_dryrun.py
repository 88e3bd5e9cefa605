"""What `run --dry-run` prints is what the run would do, and no more."""

from __future__ import annotations

import pytest

from unidetox_ray.config import load
from unidetox_ray.dryrun import describe


def described(root, *overrides: str) -> tuple[set[str], set[str]]:
    """(data roles, stages) that the plan of tiny.yaml names under the overrides."""
    lines = describe(load(root / "experiments" / "tiny.yaml", overrides)).splitlines()
    data, stages, cells = (
        next(i for i, line in enumerate(lines) if line.startswith(name))
        for name in ("data:", "stages:", "cells:")
    )
    return {line.split()[0] for line in lines[data + 1 : stages]}, {
        line.split()[0] for line in lines[stages + 1 : cells]
    }


def test_the_toxic_model_is_planned_where_a_corpus_contrasts_with_it(root):
    data, stages = described(root)
    assert "toxic" in data and {"toxic", "corpus", "search"} <= stages


@pytest.mark.parametrize(
    "methods",
    [
        "methods=[base]",
        "methods=[base, samples]",
        "methods=[base, {method: unidetox, settings: {source: texts.csv}}]",
    ],
    ids=["base", "control", "a corpus from a file"],
)
def test_without_a_contrast_no_toxic_model_nor_its_data_is_planned(root, methods):
    # A path that is not there: the data of a stage that is left out are not even looked for.
    data, stages = described(root, methods, "search=null", "data.toxic={dataset: dghs, path: /not/there.csv}")
    assert "toxic" not in data and "prompts" in data
    assert "toxic" not in stages and {"generate", "score"} <= stages
    assert ("corpus" in stages) is ("samples" in methods)
