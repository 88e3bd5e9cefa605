"""Connecting to Ray, and what a process of ours needs before it touches torch."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from unidetox_ray.errors import ConfigError, StageError
from unidetox_ray.settings import ClusterSection

#: Read by Ray and Ray Train in the driver. The shorter polls cut seconds from the tail of every training.
_DRIVER_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tune would take Ctrl-C for itself, end its trials as if they had failed, and keep the signal for the stages after it.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's own CSV, JSON and TensorBoard files lie in a folder that goes with the run; importing the last costs a second.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

#: Ray's processes listen on every interface of the machine, except where it believes that no cluster can be formed: then the
#: node is 127.0.0.1 and so is all that listens. Ray has no setting of its own for it (`_node_ip_address="127.0.0.1"` is turned
#: into the outer address). tests/secrets/test_whole_run.py lists the sockets of a run.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
if sys.platform == "linux":  # where the interface has this name; torch's workers talk over it
    _LOOPBACK_ONLY |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}

#: Worker processes that may start at once on a private cluster. Ray's default, the number of CPUs, makes it warn on a
#: machine with few of them: beside each worker, a training has a controller and a trial a driver, which only wait.
_STARTING_WORKERS = 4


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of every worker. Threads are fixed so that sums, and so texts, do not depend on the machine."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "PYTHONWARNINGS": "ignore",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    # Paths and switches only: what stands here is readable on the dashboard and in Ray's logs, so never a token.
    for name in (
        "HF_HUB_OFFLINE",
        "HF_HOME",
        "HF_TOKEN_PATH",
        "DS_ACCELERATOR",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
    ):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment


def _first_of_all() -> Callable[[], None]:
    """What every worker process of a private cluster, Ray's own helpers too, does before anything else.

    Fewer garbage collections while modules load, which Python's threshold of 700 makes a tenth of, and none at the end: an
    interpreter that ends looks at every object once more, which with torch, transformers and Ray loaded costs a process
    over a second of CPU while the next stage's processes start.
    """

    def begin() -> None:  # in here, so that it travels by value: a worker has not got the driver's paths yet
        import atexit
        import gc

        gc.set_threshold(50_000, 20, 50)
        atexit.register(gc.freeze)

    return begin


@contextmanager
def connected(settings: ClusterSection) -> Iterator[None]:
    """A Ray session: the one already open, the cluster at the address, or a private one on this machine.

    What this starts, it ends; a session or cluster that was there before stays.
    """
    for name, value in _DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    starting = max(_STARTING_WORKERS, settings.num_cpus or os.cpu_count() or 1)
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(starting))
    address = settings.address or os.environ.get("RAY_ADDRESS")
    with nullcontext() if address else _private():
        import ray
        from ray.util.annotations import RayDeprecationWarning

        # map_batches takes restarts and retries of actors only as remote arguments, which it calls deprecated.
        warnings.filterwarnings("ignore", category=RayDeprecationWarning)
        if ray.is_initialized():
            yield
            return
        _open(settings, address)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _private() -> Iterator[None]:
    """What a cluster of this process's own needs in the environment: loopback, and a token that dies with it.

    A mode or token that the user has set is kept. Nothing changes where a session is open already.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield
        return
    wanted = {**_LOOPBACK_ONLY, "RAY_AUTH_MODE": "token"}
    if not os.environ.get("RAY_AUTH_TOKEN") and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        # Ray would otherwise write one, readable by all, into the home folder, and fail where there is none.
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    # Both were read when ray was imported, which may have been before us.
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "1"
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def _open(settings: ClusterSection, address: str | None) -> None:
    """Join the cluster at the address, or start a private one."""
    import ray

    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": bool(os.environ.get("UNIDETOX_DEBUG")),
        "runtime_env": {"env_vars": worker_environment(settings.threads)},
    }
    if not address:
        # The dashboard stays on: without it Ray Train leaves CPUs reserved after a trial that stopped early.
        options |= {
            "address": "local",
            "num_cpus": settings.num_cpus,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
        }
        options["runtime_env"]["worker_process_setup_hook"] = _first_of_all()
    else:
        options |= {"address": address}
    on_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if on_main else None
    try:
        ray.init(**options)
    except Exception as error:  # a node that does not come up in time is a bare Exception
        said = " ".join(str(error).split())
        if address and isinstance(error, ValueError):
            raise ConfigError(
                f"cluster.address {address!r}: {said}; accepted: host:port, ray://host:port, auto, local"
            ) from None
        if address:
            raise StageError(f"Ray could not be reached at {address}: {said}; see `ray status`") from None
        raise StageError(
            f"Ray could not be started on this machine: {said}; where it is busy with other work, try again later"
        ) from None
    if on_main:
        # Ray puts its own handler there; ours ends the tracked runs and names the exit code.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def on_one_machine() -> bool:
    """Whether the session's node is 127.0.0.1, which no other machine can join."""
    import ray

    return str(ray.get_runtime_context().gcs_address).rpartition(":")[0] == "127.0.0.1"


@dataclass(frozen=True)
class Devices:
    """What a cluster has. memory: bytes of its smallest node. accelerators: what its nodes call their GPUs."""

    nodes: int
    cpus: int
    gpus: int
    memory: float
    accelerators: tuple[str, ...]


def devices_of(settings: ClusterSection) -> Devices:
    """The devices of the cluster at the settings' address; StageError where it cannot be reached."""
    with connected(settings):
        return devices()


def devices() -> Devices:
    """The devices of the cluster that has been joined."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    names = {
        name.partition(":")[2] for node in nodes for name in node if name.startswith("accelerator_type:")
    }
    return Devices(
        nodes=len(nodes),
        cpus=int(sum(node.get("CPU", 0) for node in nodes)), gpus=int(sum(node.get("GPU", 0) for node in nodes)),
        memory=float(min((node.get("memory", 0.0) for node in nodes), default=0.0)), accelerators=tuple(sorted(names)),
    )  # fmt: skip


def has_gpus() -> bool:
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def worker_gpu() -> tuple[int, bool, str]:
    """(bytes, whether it computes in bfloat16 itself, name) of the GPU that a worker gets. The cluster has been joined."""
    import ray

    memory, bf16, name = ray.get(ray.remote(num_gpus=1, num_cpus=1)(_look_at_gpu).remote())
    return int(memory), bool(bf16), str(name)


def _look_at_gpu() -> tuple[int, bool, str]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return int(found.total_memory), bool(torch.cuda.is_bf16_supported(including_emulation=False)), found.name


def gpus_per_actor(settings: ClusterSection) -> float:
    if settings.gpus_per_actor is not None:
        return settings.gpus_per_actor
    return 1.0 if has_gpus() else 0.0


def concurrent_groups(settings: ClusterSection, wanted: int) -> int:
    """How many training groups run at once: as configured, else as many as CPUs or GPUs carry."""
    import ray

    resources = ray.cluster_resources()
    unit = "GPU" if has_gpus() else "CPU"
    fitting = max(1, int(resources.get(unit, 1) // settings.workers_per_cell))
    return max(1, min(wanted, settings.concurrent_cells or fitting))


def prepare_process(threads: int) -> str:
    """Called first in every worker process; returns the torch device to use."""
    import torch

    torch.set_num_threads(threads)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    return "cuda" if torch.cuda.is_available() else "cpu"
