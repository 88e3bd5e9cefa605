"""The device that the training will run on, as a worker of the cluster sees it."""

from __future__ import annotations

from unidetox_ray.container import machine_memory
from unidetox_ray.detoxify.room import Device
from unidetox_ray.stages.cluster import worker_gpu
from unidetox_ray.stages.context import Context


def device_of(context: Context) -> Device:
    """Joins or starts Ray. A cluster's GPU is asked by a task, since the driver may stand on a machine without one."""
    context.connect()
    if not context.on_gpu:
        return Device("cpu", machine_memory(), bf16=False, name="cpu")
    memory, bf16, name = worker_gpu()
    return Device("cuda", memory, bf16=bf16, name=name)
