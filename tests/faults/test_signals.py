"""SIGTERM and Ctrl-C: nothing is left running, the tracker knows, and the same command goes on."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing

import pytest
from drivers import Driver, experiment, gone, leftovers, same_results

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def statuses(root) -> set[str]:
    with closing(sqlite3.connect(root / "tracked.db")) as database:
        return {status for (status,) in database.execute("SELECT status FROM runs")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_everything_and_the_same_command_goes_on(number, code, place, undisturbed):
    root = place / f"signal-{int(number)}"
    driver = Driver(experiment(root))
    driver.until(lambda folder: any(folder.glob("models/gpt2-unidetox-*/.checkpoints/committed.json")))
    children = driver.kill(number)
    assert driver.process.returncode == code, driver.output
    assert gone(children) == []
    assert "RUNNING" not in statuses(root) and "KILLED" in statuses(root)
    driver = Driver(driver.path)
    assert driver.wait() == 0, driver.output
    assert statuses(root) == {"FINISHED"}
    same_results(driver.folder, undisturbed)
    assert leftovers(driver.folder) == []


def test_two_submissions_of_one_run(place, undisturbed):
    first = Driver(experiment(place / "twice"))
    first.until(lambda folder: any(folder.glob("stages/corpus-unidetox-*/parts/*.parquet")))
    second = Driver(first.path)
    assert second.wait() == 2
    assert f"is being written by process {first.process.pid}" in second.output
    assert len(second.output.strip().splitlines()) == 1, second.output
    assert first.wait() == 0, first.output
    same_results(first.folder, undisturbed)
