"""A metric is one file and one registry line: the example of docs/extending.md, as it stands there."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from stored_tables import info, make_tables

from unidetox_ray import registry
from unidetox_ray.errors import ConfigError
from unidetox_ray.report import build
from unidetox_ray.report.text import interval, number
from unidetox_ray.results import ResultSettings, cell_results, write_results

SETTINGS = ResultSettings(scorer="main", judge="judge", bootstrap_samples=500)
CELLS = (info("base", "base"), info("ours"))


def example(root: Path) -> str:
    """The first block of Python of the section on metrics."""
    section = (root / "docs" / "extending.md").read_text(encoding="utf-8").partition("\n## A metric\n")[2]
    return section.partition("```python\n")[2].partition("```")[0]


@pytest.fixture
def scratch(root, tmp_path, monkeypatch):
    """A function: the source of a module and its registry name -> it is registered until the test ends."""
    monkeypatch.syspath_prepend(tmp_path)

    def register(source: str, name: str) -> None:
        (tmp_path / f"scratch_{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"scratch_{name}", raising=False)
        monkeypatch.setitem(registry.METRICS, name, f"scratch_{name}:METRIC")

    return register


@pytest.fixture(scope="module")
def tables():
    scores, generations, prompts = make_tables(["base", "ours"])
    tokens = (pl.int_range(pl.len()) * 7 % 11 + 5 * (pl.col("cell") == "ours")).cast(pl.Int64)
    return scores, generations.with_columns(n_tokens=tokens), prompts


def test_it_is_measured_beside_the_others_and_stands_in_results_and_report(root, scratch, tables, tmp_path):
    before = cell_results(*tables, cells=CELLS, settings=SETTINGS)
    scratch(example(root), "length")
    rows = cell_results(*tables, cells=CELLS, settings=SETTINGS)
    for row, old in zip(rows, before, strict=True):
        mine = tables[1].filter(pl.col("cell") == row["cell"])
        entry = row["metrics"]["tokens"]
        # As many continuations of every prompt: the mean of means is the mean.
        assert entry["value"] == pytest.approx(mine["n_tokens"].mean())
        assert entry["ci_low"] < entry["value"] < entry["ci_high"]
        assert entry["n"] == 24 and entry["failed"] == 0
        assert (
            set(row["metrics"]) == {*old["metrics"], "tokens"}
            and row["domains"].keys() == old["domains"].keys()
        )
        for name, known in old["metrics"].items():
            assert row["metrics"][name] == pytest.approx(known), name
    base, ours = (row["metrics"]["tokens"] for row in rows)
    assert ours["diff"] == pytest.approx(ours["value"] - base["value"]) and base["diff"] is None
    assert ours["diff_low"] <= ours["diff"] <= ours["diff_high"]

    write_results(rows, tmp_path)
    markdown = build(tmp_path).markdown.read_text(encoding="utf-8").replace("\\", "")
    section = markdown.partition("## Further metrics\n")[2].partition("\n## ")[0]
    table = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line[:1] == "|"]
    place, line = table[0].index("tokens"), next(line for line in table if "unidetox" in line[1])
    shown = f"{number(ours['value'])} {interval(ours['ci_low'], ours['ci_high'])}; "
    assert line[place].replace("*", "").startswith(shown + "Δ ")


def test_enough_lost_continuations_withhold_it(root, scratch, tables):
    scratch(example(root), "length")
    scores, generations, prompts = tables
    lost = (pl.col("cell") == "ours") & (pl.col("prompt_id") == "p1")
    broken = generations.with_columns(error=pl.when(lost).then(pl.lit("timeout")))
    ours = cell_results(scores, broken, prompts, cells=CELLS, settings=SETTINGS)[1]["metrics"]["tokens"]
    assert ours["value"] is None and ours["failed"] == 8
    assert ours["reason"] == "8 of 192 continuations failed, at most 1.00% may"


def test_a_number_of_a_domain_stands_there(root, scratch, tables):
    by_domain = example(root).replace(
        'yield Number(cell, "tokens", number)', 'yield Number(cell, "tokens", number, "north")'
    )
    scratch(by_domain, "length")
    row = cell_results(*tables, cells=CELLS, settings=SETTINGS)[0]
    assert set(row["domains"]["north"]) == {"distribution", "tp", "emt", "tokens"}
    assert set(row["domains"]["far"]) == {"distribution", "tp", "emt"} and "tokens" not in row["metrics"]


def test_two_metrics_of_one_number_are_refused(root, scratch, tables):
    scratch(example(root).replace('"tokens"', '"dist1"').replace('alias("dist1")', 'alias("tokens")')
            .replace('part["dist1"]', 'part["tokens"]'), "length")  # fmt: skip
    with pytest.raises(ConfigError, match="'dist1' is measured by 'distinct' and by 'length'"):
        cell_results(*tables, cells=CELLS, settings=SETTINGS)


def test_it_inherits_the_shared_matrix(root, tmp_path):
    (tmp_path / "scratch_length.py").write_text(example(root), encoding="utf-8")
    (tmp_path / "registers_length.py").write_text(
        "from unidetox_ray import registry\nregistry.METRICS['length'] = 'scratch_length:METRIC'\n",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "registers_length",
        "-v",
        "--color=no",
        "-k",
        "length or mmlu",
    ]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, "tests/metrics/test_metric_matrix.py"],
        cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    passed = [line.split()[0].partition("::")[2] for line in done.stdout.splitlines() if " PASSED" in line]
    ours = {test for test in passed if "length" in test}
    assert done.returncode == 0, done.stdout
    assert len(ours) >= 8 and {test.replace("length", "mmlu") for test in ours} | ours == set(passed)


def test_the_matrix_covers_every_registered_metric():
    import test_metric_matrix

    assert registry.names("metrics") == test_metric_matrix.NAMES
    marks = [
        mark.args[1]
        for name, test in vars(test_metric_matrix).items()
        if name.startswith("test_")
        for mark in getattr(test, "pytestmark", [])
        if mark.args[0] == "name"
    ]
    assert len(marks) >= 7 and all(names == registry.names("metrics") for names in marks)
