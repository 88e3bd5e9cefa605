"""What stages.json keeps of each stage, through runs that find work finished."""

from __future__ import annotations

import json
from pathlib import Path

from unidetox_ray.artifacts import RunFolder
from unidetox_ray.config import load
from unidetox_ray.stages import held
from unidetox_ray.stages.context import Context

TINY = Path(__file__).resolve().parents[2] / "experiments" / "tiny.yaml"


def context(place: Path, *overrides: str) -> Context:
    experiment = load(TINY, ["tracking.uri=none", *overrides])
    return Context(experiment, RunFolder(place, experiment.name))


def test_what_a_stage_took_outlives_the_runs_that_find_it_finished(tmp_path):
    first = context(tmp_path)
    first._devices = 2.0
    first.record("toxic", "k1", 12.5, reused=False, tokens=7, devices=2.0)
    for _ in range(2):  # a run, and one more after it
        again = context(tmp_path)
        again.record("toxic", "k1", 0.1, reused=True)
        again.record("finetune", "k2", 0.2, reused=True)
        rows = {row["stage"]: row for row in json.loads((again.folder.root / "stages.json").read_text())}
        assert rows["toxic"]["seconds"] == 0.1 and rows["toxic"]["reused"]
        spent = rows["toxic"]["spent"]
        assert (
            spent["seconds"],
            spent["devices"],
            spent["device_seconds"],
            spent["tokens"],
            spent["cluster_devices"],
        ) == (12.5, 2.0, 25.0, 7, 2.0)
        assert rows["finetune"]["spent"] is None  # no run left it: unknown, and not 0
    other = context(tmp_path)
    other.record("toxic", "k3", 1.0, reused=True)
    assert other.stages[0]["spent"] is None, "another key is another work"


def test_nothing_is_held_while_nothing_is_connected(tmp_path):
    here = context(tmp_path)
    assert (
        held.by_actors(here, 4)
        == held.by_groups(here, 2)
        == held.by_trials(here, 3, None)
        == held.by_tasks(here, 2, 0.25)
        == 0
    )


def test_devices_held_are_those_that_the_cluster_carries(tmp_path):
    here = context(tmp_path, "cluster.workers_per_cell=2", "cluster.gpus_per_actor=1")
    here._connected, here._gpu, here._devices = True, True, 8.0
    assert held.by_actors(here, 4, 2) == 2 and held.by_actors(here, 40) == 8
    assert (
        held.by_trials(here, 10, None) == 8
        and held.by_trials(here, 10, 1) == 2
        and held.by_trials(here, 1, None) == 2
    )
    assert held.by_tasks(here, 5, 0.25) == 1.25 and held.by_tasks(here, 5, 0.0) == 0
