"""Random faults at random moments, seeded: whatever is killed, the same command ends with the same tables.

pytest tests/faults/test_chaos.py --seeds 20 --first-seed 100
"""

from __future__ import annotations

import random
import time

import psutil
import pytest
from drivers import MOMENTS, Driver, accounted, begun, gone, leftovers, same_results

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

#: Drivers started by one schedule before the run must have ended.
STARTS = 6


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        first, count = (metafunc.config.getoption(name) for name in ("--first-seed", "--seeds"))
        metafunc.parametrize("seed", range(first, first + count))


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


@pytest.mark.brief
def test_a_random_schedule_of_kills(seed, undisturbed, tmp_path):
    """Every fourth schedule strikes a whole run, the others one that has two of its stages still to do."""
    chance, hits = random.Random(seed), []
    redo = list(MOMENTS) if seed % 4 == 0 else chance.sample(list(MOMENTS), 2)
    path = begun(undisturbed, tmp_path, redo)
    strikes = chance.randint(1, 3)
    for _ in range(STARTS):
        driver = Driver(path)
        while driver.process.poll() is None and strikes:
            time.sleep(chance.uniform(1.0, 12.0))
            if driver.process.poll() is None:
                hits.append(strike(driver, chance))
                strikes -= 1
        code = driver.wait()
        assert code in (0, 1, 3, -9), f"{redo}, {hits}: {driver.output}"
        if code == 0:
            break
    assert code == 0, f"{redo}: not finished after {STARTS} drivers; {hits}: {driver.output}"
    same_results(driver.folder, undisturbed)
    assert accounted(driver.folder) == accounted(undisturbed)
    assert leftovers(driver.folder) == []
