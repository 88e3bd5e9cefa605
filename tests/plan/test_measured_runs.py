"""The plan against what real runs took on the machine that the shipped rates of `cpu` are from."""

from __future__ import annotations

import json
from pathlib import Path

from unidetox_ray.config import load
from unidetox_ray.plan import devices, planning

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
ROOT = Path(__file__).resolve().parents[2]
#: Shorter stages are start-up alone, which varies by a second or two from one run to the next.
SHORT = 8.0


def planned(name: str, overrides: list[str]) -> dict[str, float]:
    """Seconds by stage, the pools of a stage added up."""
    record = RECORDED[name]
    experiment = load(ROOT / "experiments" / record["experiment"], overrides, limit=record["limit"])
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


def test_the_tiny_experiment_is_planned_within_a_quarter_stage_by_stage():
    whole, each = compare("tiny", [])
    assert abs(whole) < 0.25, whole
    assert all(abs(deviation) < 0.25 for deviation in each.values()), each
    assert len(each) == 5


def test_every_method_on_four_families_is_planned_within_a_quarter():
    # Eleven cells more than planned ran, for families whose own choice differed: a plan cannot know which.
    whole, each = compare("methods", [])
    assert abs(whole) < 0.25, whole
    assert sum(abs(deviation) < 0.25 for deviation in each.values()) >= len(each) - 1, each


def test_real_data_and_other_models_are_planned_within_a_quarter(shared_root):
    whole, each = compare("mini", [f"data.data_root={shared_root / 'data'}"])
    assert abs(whole) < 0.25, whole
    assert abs(each["finetune"]) < 0.25 and abs(each["generate"]) < 0.25, each
