"""The plan against what real runs took on the machine that the shipped rates of `cpu` are from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unidetox_ray.config import load
from unidetox_ray.plan import devices, planning

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
ROOT = Path(__file__).resolve().parents[2]
#: Shorter stages are start-up alone, which varies by a second or two from one run to the next.
SHORT = 8.0


def planned(name: str, overrides: list[str]) -> dict[str, float]:
    """Seconds by stage, the pools of a stage added up."""
    record = RECORDED[name]
    changes = [*record["overrides"], *overrides]
    experiment = load(ROOT / "experiments" / record["experiment"], changes, limit=record["limit"])
    made = planning.plan(experiment, devices.parse("cpu:2"), advise=False)
    found: dict[str, float] = {}
    for stage in made.stages:
        part = stage.stage.partition("-")[0]
        found[part] = found.get(part, 0.0) + stage.seconds
    return found


def compare(name: str, overrides: list[str]) -> tuple[float, dict[str, float]]:
    """(deviation of the sum, deviation of each stage that is long enough), as shares."""
    found, measured = planned(name, overrides), RECORDED[name]["stages"]
    whole = sum(found[stage] for stage in measured) / sum(measured.values()) - 1
    return whole, {stage: found[stage] / taken - 1 for stage, taken in measured.items() if taken >= SHORT}


@pytest.mark.parametrize(("name", "long_stages"), [("tiny", 5), ("methods", 8)])
def test_what_ran_on_the_embedded_world_is_planned_within_a_quarter_stage_by_stage(name, long_stages):
    whole, each = compare(name, [])
    assert abs(whole) < 0.25, whole
    assert all(abs(deviation) < 0.25 for deviation in each.values()), each
    assert len(each) == long_stages


def test_real_data_and_other_models_are_planned_within_a_quarter_stage_by_stage(shared_root):
    whole, each = compare("mini", [f"data.data_root={shared_root / 'data'}"])
    assert abs(whole) < 0.25, whole
    assert all(abs(deviation) < 0.25 for deviation in each.values()), each
    assert len(each) == 5
