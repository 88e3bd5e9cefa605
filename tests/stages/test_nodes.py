"""What every node of a cluster answers: one that cannot, and one that takes too long, are told apart."""

from __future__ import annotations

import os
import time

import pytest

from unidetox_ray.stages.cluster import devices
from unidetox_ray.stages.nodes import asked


@pytest.mark.ray
def test_every_node_answers_in_time_with_an_error_or_late(ray_session):
    import ray

    def divided(by: int) -> int:
        return 12 // by

    def slow() -> None:
        time.sleep(30)

    (alive,) = ray.nodes()
    answers = list(asked(divided, 5, seconds=120))
    assert [(each.address, each.value, each.error, each.late) for each in answers] == [
        (alive["NodeManagerAddress"], 2, "", False)
    ]
    assert devices().nodes == len(answers)
    (broken,) = asked(divided, 0, seconds=120)
    assert broken.value is None and "ZeroDivisionError" in broken.error and "\n" not in broken.error
    started = time.monotonic()
    (late,) = asked(slow, seconds=0.5)
    assert late.late and late.value is None and time.monotonic() - started < 20


@pytest.mark.ray
def test_a_node_whose_cpus_are_all_taken_answers(ray_session):
    import ray

    class Busy:
        def here(self) -> int:
            return 1

    def pid() -> int:
        return os.getpid()

    holding = ray.remote(num_cpus=ray.cluster_resources()["CPU"])(Busy).remote()
    assert ray.get(holding.here.remote()) == 1 and ray.available_resources().get("CPU", 0) == 0
    (answer,) = asked(pid, seconds=120)
    assert answer.value not in (None, os.getpid())
    ray.kill(holding)
