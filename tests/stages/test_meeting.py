"""Workers that cannot meet fail their own training and leave the cluster to the next one."""

from __future__ import annotations

import time

import pytest
import torch

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def train(backend: object) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    def work() -> None:
        ray.train.report({"world": ray.train.get_context().get_world_size()})

    TorchTrainer(
        work, scaling_config=ray.train.ScalingConfig(num_workers=2), torch_config=backend,
        run_config=ray.train.RunConfig(failure_config=ray.train.FailureConfig(max_failures=0)),
    ).fit()  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="nccl works here")
@pytest.mark.parametrize("name", ["OneMachine", "SeveralMachines"])
def test_workers_that_cannot_meet_give_back_what_they_reserved(name, ray_session):
    import ray

    from unidetox_ray.stages import meeting

    kind = getattr(meeting, name)
    everything = ray.cluster_resources()["CPU"]
    with pytest.raises(Exception, match=r"(?i)nccl"):
        train(kind(backend="nccl"))  # there is no GPU that nccl could speak for
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < everything:
        assert time.monotonic() < deadline, "the failed training keeps its CPUs"
        time.sleep(0.2)


def test_workers_of_two_processes_meet_over_the_network(ray_session):
    from unidetox_ray.stages.meeting import SeveralMachines

    train(SeveralMachines(backend="gloo"))
