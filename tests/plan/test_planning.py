"""Whole plans of the shipped experiments: what fits, what does not, and that the remedies that are named work."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from unidetox_ray.config import load
from unidetox_ray.plan import console, devices, page, planning

ROOT = Path(__file__).resolve().parents[2]
CELL_KEYS = {"stage", "family", "method", "gpus", "peak_gib", "disk_gib", "seconds", "gpu_seconds", "fits"}


def planned(name: str, gpus: str, *overrides: str, **more: object) -> planning.Plan:
    return planning.plan(load(ROOT / "experiments" / f"{name}.yaml", overrides), devices.parse(gpus), **more)


def test_the_paper_fits_one_a100_and_a_cluster_is_faster():
    alone, cluster = planned("single_a100", "a100-80:1"), planned("paper_cluster", "a100-80:8")
    assert alone.problems == cluster.problems == []
    assert alone.speedup == pytest.approx(1.0) and alone.efficiency == pytest.approx(1.0)
    assert 2 < cluster.speedup < 8 and cluster.efficiency == pytest.approx(cluster.speedup / 8)
    stages = [stage.stage for stage in alone.stages]
    assert stages == ["toxic", "corpus", "finetune", "generate", "score", "content", "report"]
    ends = [(stage.start, stage.start + stage.seconds) for stage in alone.stages]
    assert all(before[1] == pytest.approx(after[0]) for before, after in itertools.pairwise(ends))
    # 3,000 steps of 7B: 9 minutes on an H200 (performance.md), so about half an hour on an A100.
    falcon = next(
        c
        for c in planned("single_a100", "h200:1").cells
        if c.cell.stage == "finetune" and c.cell.family == "llama"
    )
    assert 500 < falcon.seconds < 720


def test_the_json_is_the_contracts(capsys):
    values = planned("paper_cluster", "h100-80:4", price=2.5).as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert {"stages", "cells"} <= values.keys() and all(cell.keys() >= CELL_KEYS for cell in values["cells"])
    assert {cell["stage"] for cell in values["cells"]} >= {"toxic", "corpus", "finetune", "generate", "score"}
    trained = [c for c in values["cells"] if c["stage"] == "finetune"]
    assert len(trained) == 8 and all(
        c["gpus"] == 1 and c["gpu_seconds"] == pytest.approx(c["seconds"]) for c in trained
    )
    totals = values["totals"]
    assert totals["cost"] == pytest.approx(2.5 * totals["rented_hours"], abs=0.01)
    assert totals["gpu_hours"] <= totals["rented_hours"]


def test_a_speed_up_over_another_kind_of_device_says_so():
    assert not any("another device" in note for note in planned("paper_cluster", "a100-80:4").notes)
    other = planned("paper_cluster", "h100-80:4")
    assert other.efficiency > 1 and any("h100-80 is another device" in note for note in other.notes)


def test_cores_are_no_gpus():
    values = planned("tiny", "cpu:2").as_dict()
    assert (
        all(cell["gpus"] == 0 == cell["gpu_seconds"] for cell in values["cells"])
        and values["totals"]["gpu_hours"] == 0
    )
    assert all(cell["fits"] for cell in values["cells"]) and values["baseline"]["efficiency"] is None
    assert values["models"]["gpt2"] > 200_000


CASES = {
    "master weights of 7B on one device": (
        "single_a100",
        "a100-80:4",
        ["finetune.precision=bf16_master"],
        "finetune",
    ),
    "fp32 on one device alone": ("single_a100", "a100-80:1", ["finetune.precision=fp32"], "finetune"),
    "a smaller device": ("single_a100", "a100-40:1", [], "finetune"),
    "a large batch of long texts": (
        "single_a100",
        "a100-80:1",
        ["toxic.batch_size=512", "toxic.pad_to=longest"],
        "toxic",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused_with_a_setting_that_makes_it_fit(case):
    name, gpus, overrides, stage = CASES[case]
    made = planned(name, gpus, *overrides)
    mine = [problem for problem in made.problems if problem.startswith(f"{stage}:")]
    assert len(mine) == 1 and "\n" not in mine[0] and not made.as_dict()["fits"]
    failing = [cell for cell in made.cells if not cell.fits and cell.cell.stage == stage]
    assert failing and all(cell.why and cell.remedy for cell in failing)
    for remedy in failing[0].remedy.split(" or "):
        again = planned(name, gpus, *overrides, *remedy.split())
        assert all(cell.fits for cell in again.cells if cell.cell.stage == stage), remedy


def test_what_no_setting_makes_fit_says_so():
    made = planned("single_a100", "a10g-24:1", "finetune.batch_size=1", "finetune.max_length=64")
    text = " ".join(made.problems)
    assert "take devices with more memory" in text or "makes it fit" in text
    assert made.baseline is not None  # on an A100 it does


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster.workers_per_cell=4"], r"workers_per_cell = 4: .* the fleet has 2; set it to 2"),
        (["cluster.workers_per_cell=2", "finetune.batch_size=7"], r"finetune.batch_size = 7 does not divide"),
        (["cluster.gpus_per_actor=3"], r"gpus_per_actor = 3: .* set it to 2"),
    ],
)
def test_settings_that_would_wait_for_ever_are_refused(overrides, words):
    made = planned("paper_cluster", "a100-80:2", *overrides)
    assert any(re.search(words, problem) for problem in made.problems), made.problems


def test_a_disk_that_is_too_small_is_refused():
    from dataclasses import replace

    fleet = replace(devices.parse("a100-80:1"), disk_free=float(10 * 2**30))
    made = planning.plan(load(ROOT / "experiments" / "single_a100.yaml"), fleet)
    assert any(re.match(r"disk: the run leaves 8\d\.\d GiB", problem) for problem in made.problems)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml")))
@pytest.mark.parametrize("gpus", ["h200:3", "cpu:5"])
def test_every_shipped_experiment_has_a_plan_that_can_be_shown(name, gpus, request):
    overrides = []
    if name == "mini":
        overrides = [f"data.data_root={request.getfixturevalue('shared_root') / 'data'}"]
    made = planned(name, gpus, *overrides, advise=False)
    text = console.text(made)
    assert all(stage.stage in text for stage in made.stages) and max(map(len, text.splitlines())) < 400
    html = page.render(made)
    assert html.count("<svg") >= 1 and "Gantt chart" in html and "<script src" not in html
    assert made.seconds > 0 and all(stage.seconds >= 0 for stage in made.stages)
    bars = [bar for ran in made.schedule.ran for bar in ran.bars]
    assert bars and all(0 <= bar.start <= bar.end <= made.seconds + 1e-6 for bar in bars)


def test_more_of_everything_takes_longer_and_more_devices_take_less():
    base = planned("paper_cluster", "a100-80:4", advise=False).seconds
    assert planned("paper_cluster", "a100-80:4", "finetune.steps=6000", advise=False).seconds > base
    assert planned("paper_cluster", "a100-80:4", "evaluate.runs=10", advise=False).seconds > base
    assert planned("paper_cluster", "a100-80:1", advise=False).seconds > base
    assert planned("paper_cluster", "h200:4", advise=False).seconds < base


def test_a_limit_and_unknown_data_are_reckoned_with(tmp_path):
    experiment = load(ROOT / "experiments" / "single_a100.yaml", [], limit=8)
    small = planning.plan(experiment, devices.parse("a100-80:1"), advise=False)
    assert small.seconds < 0.7 * planned("single_a100", "a100-80:1", advise=False).seconds
    from unidetox_ray.errors import ConfigError

    with pytest.raises(ConfigError, match=r"data.toxic: how much .* give a local copy"):
        planning.plan(
            load(ROOT / "experiments" / "single_a100.yaml", ["data.toxic.dataset=toxigen"]),
            devices.parse("h200:1"),
            advise=False,
        )
