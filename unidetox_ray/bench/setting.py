"""The place a benchmark runs in: device, dtype, threads, checked before any model is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from unidetox_ray.bench.options import DTYPES, Options
from unidetox_ray.errors import ConfigError


@dataclass(frozen=True)
class Place:
    device: torch.device
    dtype: torch.dtype
    size: str

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype_name(self) -> str:
        return {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype]

    def described(self) -> dict[str, Any]:
        """Further keys of every record."""
        about: dict[str, Any] = {"size": self.size, "torch": torch.__version__}
        if self.on_gpu:
            return about | {"gpu": torch.cuda.get_device_name(self.device)}
        return about | {"threads": torch.get_num_threads()}


@contextmanager
def place_of(options: Options, *, cpu_size: str, gpu_size: str) -> Iterator[Place]:
    """The options' place, with the default size of its device. ConfigError for a device that is not here."""
    device = _device(options.device)
    on_gpu = device.type == "cuda"
    dtype = getattr(torch, DTYPES[options.dtype or ("bf16" if on_gpu else "fp32")])
    before = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        yield Place(device, dtype, options.size or (gpu_size if on_gpu else cpu_size))
    finally:
        torch.set_num_threads(before)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise ConfigError(f"--device {name!r} is not known; accepted: cpu, cuda, cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: this machine has no GPU that torch can use; take --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device(kind, int(number)) if number else torch.device(kind)
