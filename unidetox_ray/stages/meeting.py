"""How the workers of a training on one machine find each other: by a file, so that none of them listens to the network.

torch's own store listens on every interface of the machine, without a password, whatever address it is given. Over several
machines there is no other way; keep such a cluster's ports behind a firewall.
"""

from __future__ import annotations

import shutil
import tempfile
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


class _ByFile(_TorchBackend):
    def __init__(self) -> None:
        super().__init__()
        self.folder: str | None = None

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
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
