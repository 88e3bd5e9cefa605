"""How the workers of a training find each other.

On one machine by a file, so that none of them listens to the network: torch's own store listens on every interface of the machine,
without a password, whatever address it is given. Over several machines there is no other way; keep such a cluster's ports behind a
firewall.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


class OneMachine(TorchConfig):
    """Ray Train's torch backend for a cluster of one machine."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _ByFile


class SeveralMachines(TorchConfig):
    """Ray Train's torch backend for a cluster whose nodes reach each other by their addresses."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _ByNetwork


@contextmanager
def _or_gives_back(worker_group: Any) -> Iterator[None]:
    """Where workers cannot meet, Ray Train 2.60 forgets them and keeps what they reserve: all that comes after would wait for it."""
    try:
        yield
    except Exception:
        worker_group.shutdown()
        raise


def talk_over_own_interface() -> None:
    """Runs in a worker: gloo goes by the machine's name, which many systems map to loopback, where no other node is."""
    import psutil

    own = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _ByNetwork(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        with _or_gives_back(worker_group):
            worker_group.execute(talk_over_own_interface)
            super().on_start(worker_group, backend_config)


class _ByFile(_TorchBackend):
    def __init__(self) -> None:
        super().__init__()
        self.folder: str | None = None

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        with _or_gives_back(worker_group):
            self.folder = worker_group.execute_single(0, tempfile.mkdtemp, prefix="unidetox-")
            worker_group.execute(_set_torch_distributed_env_vars)
            ray.get([
                worker_group.execute_single_async(
                    rank, _setup_torch_process_group, backend=backend_config.backend, world_rank=rank, world_size=len(worker_group),
                    init_method=(Path(str(self.folder)) / "meeting").as_uri(), timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ])  # fmt: skip

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
