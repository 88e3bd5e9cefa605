"""A cluster of two nodes, which loses one of them in every kind of stage: the run goes on and leaves what one machine leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drivers import PATIENCE, Driver, experiment, leftovers, same_results
from two_nodes import TwoNodes, two_nodes

pytestmark = [
    pytest.mark.nodes, pytest.mark.ray, pytest.mark.timeout(1200), pytest.mark.xdist_group("two nodes"),  # one cluster for all
]  # fmt: skip

#: What runs on the second node when it is lost, and what the run folder holds by then.
LOSSES: list[tuple[str, str, str]] = [
    ("finetune", "RayTrainWorker", "models/*-unidetox-*/.checkpoints/committed.json"),
    ("generate", "MapWorker", "stages/generate-*/parts/*.parquet"),
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


def to_the_end(driver: Driver, cluster: TwoNodes) -> None:
    deadline = time.monotonic() + 2 * PATIENCE
    while driver.process.poll() is None:
        if time.monotonic() > deadline:
            driver.kill()
            raise AssertionError(f"does not end:\n{driver.output}")
        cluster.look()
        time.sleep(0.05)


def busy(cluster: TwoNodes, kind: str, pattern: str) -> Callable[[Path], bool]:
    """The second node has a worker of this kind, and the stage has left something."""
    second = cluster.nodes[1]
    return lambda folder: kind in second.working() and any(folder.glob(pattern))


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    """Joined by several tests, one after the other; each leaves it with both its nodes."""
    with two_nodes(cpus=1) as started:
        yield started


def examined(cluster: TwoNodes, path: Path) -> dict[str, list[str]]:
    """status -> what `unidetox doctor` says of the nodes of the cluster."""
    done = subprocess.run(
        [*cluster.wrapper, sys.executable, "-m", "unidetox_ray", "doctor", path, "--address", cluster.address, "--json"],
        env=cluster.environment, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    found: dict[str, list[str]] = {}
    for line in json.loads(done.stdout):
        if line["check"] == "nodes":
            found.setdefault(line["status"], []).append(line["seen"])
    return found


def test_doctor_asks_every_node(cluster, place):
    folder = place / "asked"
    found = examined(cluster, experiment(folder))
    assert set(found) == {"ok"}, found
    assert found["ok"][0].startswith("2 nodes, 2 CPUs, 0 GPUs")
    shares = [line for line in found["ok"][1:] if f"shares {folder / 'runs'}" in line]
    assert sorted(line.split()[1] for line in shares) == sorted(each.address for each in cluster.networks)
    assert list(folder.rglob(".unidetox-doctor*")) == []
    found = examined(cluster, experiment(place / "asked-url", storage="memory://bucket"))
    assert any("serves one node, the cluster has 2" in line for line in found["fail"])


def test_a_storage_that_nodes_do_not_share_is_said_and_costs_no_row(cluster, place):
    if cluster.apart is None:
        pytest.skip("no mounts of a node's own here (needs root)")
    # Reads models, which are shared, and writes texts, which are not.
    spread = {"corpus_actors": 2}
    path = experiment(
        place / "apart", methods=["samples"], search=None, storage=str(cluster.apart), cache=str(place / "cache"), cluster=spread
    )  # fmt: skip
    assert any("node " in line and "No such file" in line for line in examined(cluster, path)["fail"])
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    driver = Driver(path, environment=environment, wrapper=cluster.wrapper)
    assert driver.wait() == 1, driver.output
    assert "is not to be seen here" in driver.output and "every node" in driver.output
    assert not list(driver.folder.glob("stages/corpus-*/manifest.json"))


def test_one_training_spans_both_nodes(cluster, place):
    """Two workers of a CPU each, on nodes of one CPU each: ZeRO shards of one model, sums over the network."""
    cluster.seen.clear()
    path = experiment(
        place / "spans", families=["gpt2"], methods=["samples"], search=None, cache=str(place / "cache"), cluster={"workers_per_cell": 2},
        finetune={"steps": 6, "batch_size": 4, "lr": 1e-3, "max_length": 32, "checkpoint_every": 3, "deepspeed": {"stage": 2}},
    )  # fmt: skip
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    driver = Driver(path, ("--until", "finetune"), environment, cluster.wrapper)
    to_the_end(driver, cluster)
    assert driver.process.returncode == 0, driver.output
    (manifest,) = driver.folder.glob("models/gpt2-samples-*/manifest.json")
    assert json.loads(manifest.read_text())["extra"]["world_size"] == 2
    assert all("RayTrainWorker" in cluster.seen[number] for number in (0, 1)), cluster.seen


def test_two_nodes_share_the_work_and_one_may_be_lost(cluster, place, undisturbed):
    spread = {"prompts_per_order": 2, "corpus_actors": 2, "generate_actors": 2, "score_actors": 2}
    cluster.seen.clear()
    path = experiment(place / "two-nodes", cluster=spread)
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    driver = Driver(path, environment=environment, wrapper=cluster.wrapper)
    try:
        for stage, kind, pattern in LOSSES:
            until(driver, cluster, busy(cluster, kind, pattern), stage)
            cluster.nodes[1].lose()
            cluster.start(cpus=1)  # another machine in its place, as an autoscaler gives one
        to_the_end(driver, cluster)
    finally:
        if driver.process.poll() is None:
            driver.kill()
    assert driver.process.returncode == 0, driver.output
    for number in (0, 1):
        assert {"MapWorker", "RayTrainWorker"} <= cluster.seen[number], cluster.seen
    same_results(driver.folder, undisturbed)
    assert leftovers(driver.folder) == []
