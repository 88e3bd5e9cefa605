"""Every registered metric: what a new one inherits."""

import subprocess
import sys

import polars as pl
import pytest
from stored_tables import info, make_tables

from unidetox_ray import registry
from unidetox_ray.errors import DataError
from unidetox_ray.metrics.base import Metric
from unidetox_ray.metrics.measure import ResultSettings, measure
from unidetox_ray.results import cell_results

NAMES = registry.names("metrics")
SETTINGS = ResultSettings(scorer="main", judge="judge", bootstrap_samples=300)
CELLS = ("base", "ours")


@pytest.fixture(scope="module")
def tables():
    """Scores, generations, prompts: rows of every kind that is stored. A metric that reads another kind adds it there."""
    return make_tables(CELLS)


def numbers(name, tables, settings=SETTINGS):
    """cell -> number's name (its domain too, if it has one) -> Measured, of one registered metric."""
    given = measure(*tables, CELLS, settings).tables
    found = list(registry.lookup("metrics", name).measured(given))
    by_cell = {cell: {} for cell in CELLS}
    for cell, label, measured, domain in found:
        assert (label, domain) not in by_cell[cell], f"{label} is measured twice"
        by_cell[cell][label, domain] = measured
    return by_cell


@pytest.mark.parametrize("name", NAMES)
def test_registered(name):
    metric = registry.lookup("metrics", name)
    assert isinstance(metric, Metric) and metric.name == name
    assert metric.direction in ("lower", "higher")
    assert metric.range[0] < metric.range[1]
    assert all(len(text) > 3 for text in (metric.unit, metric.description, metric.source))


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_has_the_same_numbers_and_the_first_is_in_range(name, tables):
    by_cell = numbers(name, tables)
    assert by_cell["base"], f"{name}: nothing measured; give it rows in tests/stored_tables.py"
    assert list(by_cell["base"]) == list(by_cell["ours"])
    low, high = registry.lookup("metrics", name).range
    for found in by_cell.values():
        assert low <= next(iter(found.values())).statistic.value <= high
        assert all(each.failed == 0 < each.expected and each.reason(0) is None for each in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_an_interval_and_a_difference_to_base(name, tables):
    rows = cell_results(*tables, cells=[info("base", "base"), info("ours")], settings=SETTINGS)
    base, ours = (row["metrics"] for row in rows)
    labels = [label for label, domain in numbers(name, tables)["ours"] if domain is None]
    assert labels
    for label in labels:
        entry = ours[label]
        assert entry["ci_low"] <= entry["value"] <= entry["ci_high"] and entry["n"] > 1, label
        assert entry["diff"] == pytest.approx(entry["value"] - base[label]["value"]), label
        assert entry["diff_low"] <= entry["diff"] <= entry["diff_high"], label


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("group_by", ["prompt_id", "prompt_text"])
def test_the_order_of_rows_changes_nothing(name, group_by, tables):
    scores, generations, prompts = tables
    # Four prompts of a text: two in each of two domains.
    prompts = prompts.with_columns(prompt=pl.lit("same ") + (pl.int_range(pl.len()) // 8).cast(pl.String))
    settings = ResultSettings(scorer="main", judge="judge", bootstrap_samples=50, group_by=group_by)
    shuffled = (t.sample(fraction=1, shuffle=True, seed=9) for t in (scores, generations))
    one, other = (
        numbers(name, given, settings) for given in ((scores, generations, prompts), (*shuffled, prompts))
    )
    for cell in CELLS:
        assert set(one[cell]) == set(other[cell])
        for label, measured in one[cell].items():
            assert measured.statistic.value == pytest.approx(other[cell][label].statistic.value), label
            assert measured.statistic.n == other[cell][label].statistic.n


@pytest.mark.parametrize("name", NAMES)
def test_what_failed_is_counted_and_never_a_number(name, tables):
    scores, generations, prompts = tables
    failed = pl.col("cell") == "ours"
    null = pl.when(~failed)
    broken = [
        scores.with_columns(null.then("value").alias("value"), error=pl.when(failed).then(pl.lit("timeout"))),
        generations.with_columns(
            null.then("text").alias("text"), error=pl.when(failed).then(pl.lit("timeout"))
        ),
    ]
    absent = [table.filter(~failed) for table in (scores, generations)]
    for given in (broken, absent):
        found = numbers(name, (*given, prompts))
        assert set(found["ours"]) == set(found["base"])
        for label, measured in found["ours"].items():
            assert measured.failed == measured.expected > 0, label
            assert measured.reason(0.5) is not None, label
        assert all(measured.failed == 0 for measured in found["base"].values())


@pytest.mark.parametrize("name", NAMES)
def test_one_failure_is_counted_in_its_own_cell(name, tables):
    scores, generations, prompts = tables
    # The first row of each kind, and one continuation with all its judgements.
    where = (pl.col("cell") == "ours") & (pl.col("run") == 0) & (pl.col("sample") == 0)
    where &= pl.col("prompt_id").is_in(["p0", "mmlu0", "clean_ppl0"])
    found = numbers(name, (scores.filter(~where), generations.filter(~where), prompts))
    assert max(measured.failed for measured in found["ours"].values()) == 1
    assert all(measured.failed == 0 for measured in found["base"].values())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stored_gives_no_number(name, tables):
    found = numbers(name, [table.clear() for table in tables])
    assert found == {"base": {}, "ours": {}}


def test_every_prompt_that_was_judged_must_be_known(tables):
    scores, generations, prompts = tables
    of_prompts = scores.filter(pl.col("prompt_id").is_in(prompts["prompt_id"].implode()))
    kinds = {registry.lookup("metrics", name).judgements for name in NAMES} - {None}
    assert kinds == set(of_prompts["metric"])
    for kind in kinds:
        rows = scores.filter(pl.col("metric") == kind)
        with pytest.raises(DataError, match="'p0' was continued or judged"):
            measure(rows, generations.clear(), prompts.filter(pl.col("prompt_id") != "p0"), CELLS, SETTINGS)


def test_importing_the_definitions_loads_no_torch():
    """Tables and reports are made where no model is; only what runs a model loads torch."""
    code = (
        "import sys; import unidetox_ray.results; from unidetox_ray import registry;"
        "[registry.lookup('metrics', name) for name in registry.names('metrics')];"
        "print(sorted({'torch', 'transformers', 'ray', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
