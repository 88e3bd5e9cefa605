"""An undisturbed run, which every disturbed one is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from drivers import Driver, experiment, leftovers


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Parent of all runs of the session; they share its cache of pre-trained models."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def undisturbed(place) -> Path:
    """The folder of a run that nothing happened to."""
    driver = Driver(experiment(place / "undisturbed"))
    assert driver.wait() == 0, driver.output
    assert leftovers(driver.folder) == []
    return driver.folder
