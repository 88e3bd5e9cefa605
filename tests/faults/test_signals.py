"""SIGTERM and Ctrl-C: nothing is left running, the tracker knows, and the same command goes on."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing

import pytest
from drivers import MOMENTS, Driver, begun, gone, leftovers, same_results

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def statuses(root) -> set[str]:
    with closing(sqlite3.connect(root / "tracked.db")) as database:
        return {status for (status,) in database.execute("SELECT status FROM runs")}


@pytest.mark.brief
def test_signals_end_everything_and_the_same_command_goes_on(tmp_path, undisturbed):
    path = begun(undisturbed, tmp_path, ("models/gpt2-unidetox", "stages/generate", "stages/score"))
    for number, code, stage in (
        (signal.SIGTERM, 143, "models/gpt2-unidetox"),
        (signal.SIGINT, 130, "stages/generate"),
    ):
        driver = Driver(path)
        driver.until(MOMENTS[stage])
        children = driver.kill(number)
        assert driver.process.returncode == code, driver.output
        assert gone(children) == []
        assert "RUNNING" not in statuses(tmp_path) and "KILLED" in statuses(tmp_path)
    driver = Driver(path)
    assert driver.wait() == 0, driver.output
    assert statuses(tmp_path) == {"FINISHED"}
    same_results(driver.folder, undisturbed)
    assert leftovers(driver.folder) == []


@pytest.mark.brief
def test_two_submissions_of_one_run(tmp_path, undisturbed):
    first = Driver(begun(undisturbed, tmp_path, ("stages/generate",)))
    first.until(MOMENTS["stages/generate"])
    second = Driver(first.path)
    assert second.wait() == 2
    assert f"is being written by process {first.process.pid}" in second.output
    assert len(second.output.strip().splitlines()) == 1, second.output
    assert first.wait() == 0, first.output
    same_results(first.folder, undisturbed)
