"""A cluster of two nodes, which loses one of them in every kind of stage: the run goes on and leaves what one machine leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from drivers import PATIENCE, Driver, experiment, leftovers, same_results
from two_nodes import TwoNodes, two_nodes

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(1200)]

#: What runs on the second node when it is lost, and what the run folder holds by then.
MOMENTS: list[tuple[str, str, str]] = [
    ("finetune", "RayTrainWorker", "models/*-unidetox-*/.checkpoints/committed.json"),
    ("generate", "MapWorker", "stages/generate-*/parts/*.parquet"),
    ("score", "MapWorker", "stages/score-*/parts/*.parquet"),
]


def until(driver: Driver, cluster: TwoNodes, moment: Callable[[Path], bool], what: str) -> None:
    """Wait for a moment, noting meanwhile what runs where."""
    deadline = time.monotonic() + PATIENCE
    while not moment(driver.folder):
        assert driver.process.poll() is None, (
            f"ended with {driver.process.returncode} before {what}:\n{driver.output}"
        )
        assert time.monotonic() < deadline, f"{what} never came:\n{driver.output}"
        cluster.look()
        time.sleep(0.05)


def busy(cluster: TwoNodes, kind: str, pattern: str) -> Callable[[Path], bool]:
    """The second node has a worker of this kind, and the stage has left something."""
    second = cluster.nodes[1]
    return lambda folder: kind in second.working() and any(folder.glob(pattern))


def test_two_nodes_share_the_work_and_one_may_be_lost(place, undisturbed):
    spread = {"prompts_per_order": 2, "corpus_actors": 2, "generate_actors": 2, "score_actors": 2}
    with two_nodes(cpus=1) as cluster:
        path = experiment(place / "two-nodes", cluster=spread)
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        driver = Driver(path, environment=environment, wrapper=cluster.wrapper)
        try:
            for stage, kind, pattern in MOMENTS:
                until(driver, cluster, busy(cluster, kind, pattern), stage)
                cluster.nodes[1].lose()
                cluster.start(cpus=1)  # another machine in its place, as an autoscaler gives one
            deadline = time.monotonic() + PATIENCE
            while driver.process.poll() is None:
                assert time.monotonic() < deadline, f"does not end:\n{driver.output}"
                cluster.look()
                time.sleep(0.05)
        finally:
            if driver.process.poll() is None:
                driver.kill()
        assert driver.process.returncode == 0, driver.output
        for number in (0, 1):
            assert {"MapWorker", "RayTrainWorker"} <= cluster.seen[number], cluster.seen
        same_results(driver.folder, undisturbed)
        assert leftovers(driver.folder) == []
