"""The check of a cluster's nodes, on a cluster of one node. tests/faults/test_two_nodes.py has one of two."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from unidetox_ray.doctor.nodes import ask_node
from unidetox_ray.settings import ClusterSection
from unidetox_ray.stages.cluster import connected


@pytest.mark.ray
def test_one_node_shares_the_storage_and_needs_no_shared_one(looked, tmp_path):
    storage = tmp_path / "storage"
    storage.mkdir()
    with connected(ClusterSection(num_cpus=1)):  # or what this process is connected to already
        count, node = looked("nodes", address="auto", storage=str(storage))
        assert count.seen.startswith("1 nodes, ") and count.seen.endswith(f" GPUs, Ray {version('ray')}")
        assert node.status == "ok" and f"same software, shares {storage}" in node.seen
        assert list(storage.iterdir()) == []
        (alone,) = looked("nodes", address="auto", storage="memory://bucket")
        assert alone.status == "ok"


def test_what_a_node_says_of_a_folder(tmp_path):
    (tmp_path / "driver").write_text("word")
    told = json.loads(ask_node(str(tmp_path), "word"))
    assert told["problem"] == "" and (tmp_path / told["left"]).read_text() == "word" and told["free_gib"] > 0
    assert json.loads(ask_node(str(tmp_path), "other"))["problem"] == "sees another file of that name"
    assert json.loads(ask_node(str(tmp_path / "absent"), "word"))["problem"] == "No such file or directory"
    assert "free_gib" not in json.loads(ask_node("", "word"))
