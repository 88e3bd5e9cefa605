"""SIGKILL of the driver in every stage, one after the other in one run: the same command each time, and the same result."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from drivers import MOMENTS, Driver, experiment, gone, leftovers, same_results, some

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def manifests(folder: Path) -> dict[str, int]:
    """Finished folders and when they were declared so."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*/manifest.json")
    }


def test_a_driver_killed_in_every_stage_goes_on_and_ends_with_the_same(place, undisturbed):
    path = experiment(place / "killed")
    finished: dict[str, int] = {}
    for stage, moment in {**MOMENTS, "report": some("results.json")}.items():
        if stage == "models/opt-unidetox":  # trained beside GPT-2, at whose moment the driver was killed
            continue
        driver = Driver(path)
        driver.until(moment)
        orphans = driver.kill()
        assert driver.process.returncode == -9, stage
        assert gone(orphans) == [], f"killed in {stage}: its processes live on"
        now = manifests(driver.folder)
        assert {name: now.get(name) for name in finished} == finished, (
            f"finished work was redone after {stage}"
        )
        finished = now
    driver = Driver(path)
    assert driver.wait() == 0, driver.output
    now = manifests(driver.folder)
    assert {name: now.get(name) for name in finished} == finished
    same_results(driver.folder, undisturbed)
    assert leftovers(driver.folder) == []


def test_a_driver_killed_while_it_pre_trains_leaves_a_cache_that_the_next_repairs(tmp_path):
    cache = tmp_path / "cache"
    path = experiment(tmp_path / "killed", cache=str(cache))
    driver = Driver(path, ("--until", "models"))
    driver.until(lambda _: any(cache.glob("*/")))
    assert gone(driver.kill()) == []
    driver = Driver(path, ("--until", "models"))
    assert driver.wait() == 0, driver.output
    assert os.listdir(cache) and not any(cache.glob("*/.*"))
