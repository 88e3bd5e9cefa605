"""The connected cluster as what is planned for."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from unidetox_ray.config import load
from unidetox_ray.plan import devices, planning
from unidetox_ray.settings import ClusterSection
from unidetox_ray.stages.cluster import connected, devices_of

TINY = Path(__file__).resolve().parents[2] / "experiments" / "tiny.yaml"


@pytest.mark.ray
def test_the_devices_of_a_cluster_are_asked_for():
    with connected(ClusterSection(num_cpus=3)):  # or what this process is connected to already
        there = int(ray.cluster_resources()["CPU"])
        found = devices_of(ClusterSection())
        assert (found.cpus, found.gpus) == (there, 0) and found.memory > 2**30
        fleet = devices.at_hand(load(TINY, ["cluster.address=auto"]), devices.stored())
        assert fleet.name == f"cpu:{there}" and fleet.measured and fleet.memory == found.memory


def test_without_one_this_machine_is(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fleet = devices.at_hand(
        load(TINY, ["cluster.num_cpus=2", f"storage={tmp_path / 'not' / 'there'}"]), devices.stored()
    )
    assert fleet.count == 2 or fleet.gpu
    assert fleet.disk_free is not None and fleet.disk_free > 0
    assert planning.plan(load(TINY), fleet, advise=False).problems == []
    assert devices.free_at("s3://bucket/place") is None
