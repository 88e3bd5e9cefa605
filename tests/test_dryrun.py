"""What `run --dry-run` prints is what the run would do, and no more."""

from __future__ import annotations

import pytest

from unidetox_ray.config import load
from unidetox_ray.dryrun import describe
from unidetox_ray.errors import UnidetoxError


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


def test_every_kind_of_method_is_planned_with_what_it_needs(root):
    methods = "methods=[base, clean_text, task_arithmetic, {method: dexperts, settings: {expert: base}}]"
    data, stages = described(root, methods, "search=null")
    assert (
        {"toxic", "corpus", "finetune", "edit", "steer"} <= stages
        and "expert" not in stages
        and "toxic" in data
    )
    _, stages = described(root, "methods=[base, dexperts]", "search=null")
    assert {"toxic", "expert", "steer"} <= stages and not {"corpus", "finetune", "edit"} & stages
    text = describe(load(root / "experiments" / "tiny.yaml", [methods, "search=null"]))
    assert "toxic     gpt2, opt, falcon, llama, on data.toxic" in text


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{method: clean_text, settings: {source: not/there.txt}}", "no such file or folder: not/there.txt"),
        (
            "{method: task_arithmetic, settings: {toxic_model: './not-{family}'}}",
            "./not-gpt2: no such folder",
        ),
    ],
    ids=["text", "toxic model"],
)
def test_a_place_that_is_not_there_ends_the_plan_in_one_line(root, method, message):
    with pytest.raises(UnidetoxError) as problem:
        describe(load(root / "experiments" / "tiny.yaml", [f"methods=[base, {method}]", "search=null"]))
    assert str(problem.value).startswith(message) and "\n" not in str(problem.value)


def test_the_trials_of_tuned_methods_are_named(root):
    methods = "methods=[base, {method: dexperts, tune: {alpha: [0.5, 1], expert: [base]}}, {method: unidetox, tune: {lr: [1e-4, 2e-4]}}]"
    text = describe(
        load(root / "experiments" / "tiny.yaml", [methods, "search=null", "families=[gpt2, opt]"])
    )
    assert (
        "tune      dexperts: alpha=0.5,expert=base alpha=1,expert=base on gpt2, opt: 2 x 2 trials\n" in text
    )
    assert "unidetox: lr=0.0001 lr=0.0002 on gpt2, opt: 2 x 2 trials, 4 trainings (schedule constant)" in text
    assert "base models: gpt2, opt: 2 trials" in text and "@own, for a family other than gpt2" in text
    assert "steer     dexperts: alpha tuned, filter_p 0.9, expert tuned" in text and "  expert " not in text
    one = describe(
        load(root / "experiments" / "tiny.yaml", [methods, "search=null", "tuning.reuse=universal"])
    )
    assert "on gpt2: 2 x 1 trials" in one and "@own" not in one
