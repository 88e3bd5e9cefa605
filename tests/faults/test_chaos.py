"""Random faults at random moments, seeded: whatever is killed, the same command ends with the same tables.

pytest tests/faults/test_chaos.py --seeds 20 --first-seed 100
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest
from drivers import Driver, accounted, experiment, gone, leftovers, same_results

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

#: One family and no search: half a minute, so that twenty schedules fit into minutes.
SMALL = {"families": ["gpt2"], "search": None}
#: Kills of one schedule, and drivers started before the run must have ended.
FAULTS, STARTS = 3, 6


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        first, count = (metafunc.config.getoption(name) for name in ("--first-seed", "--seeds"))
        metafunc.parametrize("seed", range(first, first + count))


@pytest.fixture(scope="module")
def calm(place) -> Path:
    """The run that nothing happens to."""
    driver = Driver(experiment(place / "calm", **SMALL))
    assert driver.wait() == 0, driver.output
    return driver.folder


def strike(driver: Driver, chance: random.Random) -> str:
    """SIGKILL the driver or one of Ray's processes that work for it; what was hit."""
    workers = [
        each
        for title in ("MapWorker", "RayTrainWorker", "TrainController", "ImplicitFunc", "train_scratch")
        for each in driver.workers(title)
    ]
    if not workers or chance.random() < 0.4:
        orphans = driver.kill()
        assert gone(orphans) == [], "a killed driver's processes live on"
        return "driver"
    victim = chance.choice(workers)
    try:
        title = " ".join(victim.cmdline())
        victim.kill()
    except psutil.NoSuchProcess:
        return "nobody"
    return title


def test_a_random_schedule_of_kills(seed, calm, tmp_path):
    chance, hits = random.Random(seed), []
    path = experiment(tmp_path / "chaos", cache=str(calm.parents[2] / "cache"), **SMALL)
    faults = FAULTS
    for _ in range(STARTS):
        driver = Driver(path)
        while driver.process.poll() is None and faults:
            time.sleep(chance.uniform(1.0, 14.0))
            if driver.process.poll() is None:
                hits.append(strike(driver, chance))
                faults -= 1
        code = driver.wait()
        assert code in (0, 1, 3, -9), f"{hits}: {driver.output}"
        if code == 0:
            break
    assert code == 0, f"not finished after {STARTS} drivers; {hits}: {driver.output}"
    same_results(driver.folder, calm)
    assert accounted(driver.folder) == accounted(calm)
    assert leftovers(driver.folder) == []
