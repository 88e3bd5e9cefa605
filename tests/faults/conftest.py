"""An undisturbed run, which every disturbed one is compared with, and most begin from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from drivers import Driver, experiment, leftovers, stragglers
from filelock import FileLock


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Parent of runs of the session, of all its processes; they share its cache of pre-trained models."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "faults"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(scope="session")
def undisturbed(place) -> Path:
    """The folder of a run that nothing happened to; read only."""
    root = place / "undisturbed"
    with FileLock(place / "undisturbed.lock"):
        if not (root / "done").exists():
            driver = Driver(experiment(root))
            assert driver.wait() == 0, driver.output
            assert leftovers(driver.folder) == []
            (root / "done").touch()
    return root / "runs" / "run"


@pytest.fixture(scope="session", autouse=True)
def nothing_stays() -> Iterator[None]:
    """Ray's processes that take their time are gone as well, in the end."""
    yield
    _, alive = psutil.wait_procs(stragglers, timeout=90)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
