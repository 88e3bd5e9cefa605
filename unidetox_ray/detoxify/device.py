"""The device that the training will run on, as a worker of the cluster sees it."""

from __future__ import annotations

import os
from pathlib import Path

from unidetox_ray.detoxify.room import Device
from unidetox_ray.stages.context import Context

#: Where Linux says how much memory a container may use: control groups, version 2 and 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def device_of(context: Context) -> Device:
    """Joins or starts Ray. A cluster's GPU is asked by a task, since the driver may stand on a machine without one."""
    context.connect()
    if not context.on_gpu:
        return Device("cpu", cpu_memory(), bf16=False, name="cpu")
    import ray

    memory, bf16, name = ray.get(ray.remote(num_gpus=1, num_cpus=1)(_look).remote())
    return Device("cuda", int(memory), bf16=bool(bf16), name=str(name))


def _look() -> tuple[int, bool, str]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return int(found.total_memory), bool(torch.cuda.is_bf16_supported(including_emulation=False)), found.name


def cpu_memory() -> int:
    """Bytes of this machine, or of the container that this process may use."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for place in _LIMITS:
        try:
            known.append(int(Path(place).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(known)
