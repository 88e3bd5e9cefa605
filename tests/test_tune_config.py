"""Grids of method entries: what is accepted, what is refused in one line, and what they make needed."""

from __future__ import annotations

import math

import pytest

from unidetox_ray.config import resolve
from unidetox_ray.errors import ConfigError
from unidetox_ray.stages.needs import needed


def experiment(*methods, **more):
    values = {
        "name": "x", "base_family": "gpt2", "families": ["gpt2", "opt"], "methods": ["base", *methods],
        "models": {"gpt2": "m", "opt": "m"}, "data": {"clean": "world"}, **more,
    }  # fmt: skip
    return resolve(values)


def test_every_combination_is_a_point():
    entry = experiment(
        {"method": "dexperts", "tune": {"alpha": [0.5, 2], "expert": ["clean", "base"]}}
    ).methods[1]
    assert entry.points == [
        {"alpha": alpha, "expert": expert} for alpha in (0.5, 2) for expert in ("clean", "base")
    ]
    assert [variant.settings for variant in entry.variants] == entry.points
    assert {variant.label for variant in entry.variants} == {"dexperts"}


def test_infinity_is_a_value_as_in_settings():
    entry = experiment({"method": "contrastive", "tune": {"beta": [1, "inf"]}}).methods[1]
    assert len(entry.points) == 2
    assert experiment({"method": "contrastive", "tune": {"beta": [1, math.inf]}}).methods[1].points[1] == {
        "beta": math.inf
    }


def test_corpus_methods_are_tuned_over_their_training():
    entry = experiment({"method": "unidetox", "tune": {"steps": [10, 20], "lr": [1e-4]}}).methods[1]
    assert len(entry.points) == 2 and entry.variants == [entry]


BAD = {
    "unknown": ({"alpah": [1]}, "'alpah' cannot be tuned; did you mean 'alpha'?"),
    "empty": ({"alpha": []}, "tune.alpha = []: must be a list of at least one value to try"),
    "no list": ({"alpha": 2}, "tune.alpha = 2: must be a list of at least one value to try"),
    "twice": ({"alpha": [1, 2, 1]}, "tune.alpha: holds a value twice"),
    "twice, written otherwise": ({"alpha": [1, 1.0]}, "holds a value twice, written differently"),
    "out of range": ({"filter_p": [0.5, 1.5]}, "filter_p = 1.5: "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_grids_are_refused_in_one_line(case):
    tune, expected = BAD[case]
    with pytest.raises(ConfigError) as problem:
        experiment({"method": "dexperts", "tune": tune})
    assert expected in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"method": "unidetox", "tune": {"alpha": [0.1, 0.2]}}, "accepted: lr, steps; another corpus needs an entry of its own"),
        ({"method": "unidetox", "tune": {"lr": [-1]}}, "lr = -1: "),
        ({"method": "base", "label": "b", "tune": {"alpha": [1]}}, "base has no setting to tune"),
        ({"method": "dexperts", "settings": {"alpha": 1}, "tune": {"alpha": [1, 2]}}, "stands in `settings` as well"),
    ],
    ids=["corpus setting", "corpus value", "nothing to tune", "set and tuned"],
)  # fmt: skip
def test_what_a_method_cannot_tune_is_refused(method, expected):
    with pytest.raises(ConfigError, match=expected):
        experiment(method)


def test_a_universal_choice_needs_the_base_family():
    entry = {"method": "contrastive", "tune": {"beta": [1, 2]}}
    with pytest.raises(ConfigError, match="tune needs the base family 'gpt2' among families"):
        experiment(entry, families=["opt"])
    assert experiment(entry, families=["opt"], tuning={"reuse": "per_model"}).tuning.reuse == "per_model"


def test_a_need_of_any_point_is_a_need():
    anti_only = {"method": "dexperts", "settings": {"expert": "base"}}
    assert needed(experiment(anti_only)).families("expert") == ()
    both = {"method": "dexperts", "tune": {"expert": ["base", "clean"]}}
    assert needed(experiment(both)).families("expert") == ("gpt2", "opt")


def test_a_grid_changes_the_experiments_key_and_how_many_run_at_once_does_not_change_the_trials():
    key = experiment({"method": "dexperts", "tune": {"alpha": [1, 2]}}).key
    assert experiment({"method": "dexperts", "tune": {"alpha": [1, 3]}}).key != key
    assert (
        experiment({"method": "dexperts", "tune": {"alpha": [1, 2]}}, tuning={"max_clean_ppl": 2}).key != key
    )
