"""The devices a plan is for: their measured rates (rates.json) and how many of them there are."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from unidetox_ray.config import Experiment
from unidetox_ray.container import machine_memory
from unidetox_ray.errors import ArtifactError, ConfigError
from unidetox_ray.plan.fitting import Fit, fitted
from unidetox_ray.registry import suggest

SCHEMA = 1
#: Features of each kind of work; see `fitting`.
WORK: dict[str, tuple[str, ...]] = {
    "train": ("compute", "layers"),
    "decode": ("compute", "weights", "cache", "layers", "drawn"),
    "read": ("compute", "texts"),
    "classify": ("compute", "texts"),
}
#: Start-up times and transfer rates of the host; seconds and bytes a second.
HOST = (
    "ray_seconds", "pool_seconds", "group_seconds", "group_cpu_seconds", "trial_seconds", "task_seconds", "order_seconds",
    "compile_seconds", "sequence_seconds", "character_seconds", "report_seconds", "read_bytes", "write_bytes", "shared_read_bytes",
)  # fmt: skip
_SPEC = re.compile(r"^(?P<kind>[a-z0-9][a-z0-9.-]*?)(?::(?P<count>\d{1,6}))?$")
_LARGEST = 100_000


@dataclass(frozen=True)
class Rates:
    """One kind of device. memory: bytes. matmul: operations a second by precision (fp32, bf16). bandwidth, link: bytes a
    second of its memory, and between devices of a group. fits: by kind of work. host: see `HOST`. gpu: False = a CPU core.

    per_node: devices that share one machine's disk. sources: where each number is from.
    """

    kind: str
    title: str
    gpu: bool
    memory: float
    matmul: Mapping[str, float]
    bandwidth: float
    link: float
    fits: Mapping[str, Fit]
    host: Mapping[str, float]
    per_node: int
    sources: Mapping[str, str] = field(default_factory=dict)

    def seconds(
        self,
        work: str,
        *,
        operations: float = 0.0,
        bytes_: float = 0.0,
        cached: float = 0.0,
        precision: str = "fp32",
        **counts: float,
    ) -> float:
        """Of one piece of work (see `WORK`). bytes_: of weights that are read, cached: of keys and values; counts: its further
        features."""
        return self.fits[work].seconds(
            {
                "compute": operations / self.matmul[precision], "weights": bytes_ / self.bandwidth,
                "cache": cached / self.bandwidth, **counts,
            }
        )  # fmt: skip


@dataclass(frozen=True)
class Fleet:
    """`count` devices of one kind. measured: found on the machine or cluster at hand, not named by `--gpus`."""

    rates: Rates
    count: int
    measured: bool = False
    disk_free: float | None = None
    """Bytes free at the storage, where the plan is for this machine."""

    @property
    def name(self) -> str:
        return f"{self.rates.kind}:{self.count}"

    @property
    def gpu(self) -> bool:
        return self.rates.gpu

    @property
    def memory(self) -> float:
        """Bytes that one process may have: a GPU's own, or what the machine has, shared by all its cores."""
        return self.rates.memory


def stored() -> dict[str, Any]:
    """The table shipped with the package."""
    text = resources.files("unidetox_ray.plan").joinpath("rates.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def read_table(path: Path) -> dict[str, Any]:
    """A table of one's own, laid over the shipped one kind by kind. ArtifactError, one line, for what is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: cannot be read as a table of rates ({' '.join(str(error).split())[:120]}); write one with `unidetox plan "
            "--measure --save-rates FILE`"
        ) from None
    if (
        not isinstance(values, dict)
        or values.get("schema") != SCHEMA
        or not isinstance(values.get("kinds"), dict)
    ):
        raise ArtifactError(
            f"{path}: is no table of rates of schema {SCHEMA}; write one with `unidetox plan --measure --save-rates FILE`"
        )
    table = stored()
    table["kinds"] = {**table["kinds"], **values["kinds"]}
    for kind in values["kinds"]:
        rates_of(kind, table, str(path))
    return table


def kinds(table: Mapping[str, Any]) -> list[str]:
    return list(table["kinds"])


def rates_of(kind: str, table: Mapping[str, Any] | None = None, where: str = "--gpus") -> Rates:
    """The rates of a kind. ConfigError for one that is not in the table, ArtifactError for an entry that is damaged."""
    table = stored() if table is None else table
    if kind not in table["kinds"]:
        raise ConfigError(f"{where}: device {kind!r} is not known; {suggest(kind, table['kinds'])}")
    entry = table["kinds"][kind]
    try:
        # What is not measured on this kind is taken over as shares of the other kind's limits.
        like = rates_of(entry["like"], table, where) if "like" in entry else None
        work = entry.get("work", {})
        host = {**(like.host if like else {}), **entry.get("host", {})}
        matmul = {name: float(entry["matmul_tflops"][name]) * 1e12 for name in ("fp32", "bf16")}
        bandwidth = float(entry["bandwidth_gb_s"]) * 1e9
        fits = {
            name: like.fits[name] if like and name not in work else _fit(work[name], names, matmul, bandwidth)
            for name, names in WORK.items()
        }
        numbers = {name: float(host[name]) for name in HOST}
        rates = Rates(
            kind=kind, title=str(entry["title"]), gpu=bool(entry["gpu"]), memory=float(entry["memory_gib"]) * 2**30,
            matmul=matmul, bandwidth=bandwidth, link=float(entry["link_gb_s"]) * 1e9, fits=fits, host=numbers,
            per_node=int(entry["per_node"]), sources={str(k): str(v) for k, v in entry.get("sources", {}).items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{where}: the entry {kind!r} of the rates is damaged ({type(error).__name__}: {error})"
        ) from None
    limits = (rates.memory, rates.bandwidth, rates.link, rates.per_node, *rates.matmul.values())
    if not all(math.isfinite(each) and each > 0 for each in limits):
        raise ArtifactError(f"{where}: the entry {kind!r} of the rates holds a limit that is not above 0")
    return rates


def _fit(
    entry: Mapping[str, Any], names: Sequence[str], matmul: Mapping[str, float], bandwidth: float
) -> Fit:
    """The entry's coefficients, drawn to its measurements where there are any."""
    points = [
        (
            {
                **{name: float(point.get(name, 0.0)) for name in names},
                "compute": float(point["operations"]) / matmul[point["precision"]],
                "weights": float(point.get("bytes", 0.0)) / bandwidth,
                "cache": float(point.get("cached", 0.0)) / bandwidth,
            },
            float(point["seconds"]),
        )
        for point in entry.get("points", [])
    ]
    return fitted(points, {name: float(entry["coefficients"].get(name, 0.0)) for name in names})


def parse(spec: str, table: Mapping[str, Any] | None = None) -> Fleet:
    """`a100-80:8`, `h200`, `cpu:2`. ConfigError, one line, for anything else."""
    table = stored() if table is None else table
    found = _SPEC.match(spec.strip().lower())
    if found is None:
        raise ConfigError(
            f"--gpus {spec!r}: write KIND:COUNT, for example a100-80:8; kinds: {', '.join(kinds(table))}"
        )
    count = int(found["count"] or 1)
    if not 1 <= count <= _LARGEST:
        raise ConfigError(f"--gpus {spec!r}: {count} devices; give 1 to {_LARGEST}")
    return Fleet(rates_of(found["kind"], table), count)


#: How a CUDA device's name is told from the others', and its kind; the memory decides between kinds of one name.
_NAMES = (("h200", "h200"), ("h100", "h100-80"), ("a100", "a100-80"), ("l40s", "l40s-48"), ("a10g", "a10g-24"), ("a10", "a10g-24"))  # fmt: skip


def kind_named(name: str, memory_gib: float, table: Mapping[str, Any]) -> str | None:
    """The kind of a device that calls itself `name`; None where it is not in the table."""
    low = name.lower().replace("-", " ")
    for word, kind in _NAMES:
        if re.search(rf"\b{word}\b", low):
            return "a100-40" if kind == "a100-80" and memory_gib < 60 else kind
    return next((kind for kind in table["kinds"] if kind.replace("-", " ") in low), None)


def this_machine(table: Mapping[str, Any], cpus: int | None = None) -> Fleet:
    """What is here: CUDA devices where there are any, else CPU cores (`cpus` of them) and the machine's memory, or its container's."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gib = properties.total_memory / 2**30
        kind = kind_named(properties.name, gib, table)
        if kind is None:
            raise ConfigError(
                f"this machine's {properties.name} is not in the table of rates; write its entry with `unidetox plan --measure "
                f"--save-rates FILE`, or name a like device with --gpus: {', '.join(kinds(table))}"
            )
        return Fleet(rates_of(kind, table), torch.cuda.device_count(), measured=True)
    rates = rates_of("cpu", table)
    return Fleet(
        replace(rates, memory=float(machine_memory())), cpus or len(os.sched_getaffinity(0)), measured=True
    )


def at_hand(experiment: Experiment, table: Mapping[str, Any]) -> Fleet:
    """The cluster that the experiment or RAY_ADDRESS names, else this machine, with the bytes free at the storage.

    ConfigError where its devices are not in the table.
    """
    address = experiment.cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        return replace(
            this_machine(table, experiment.cluster.num_cpus), disk_free=free_at(experiment.storage)
        )
    from unidetox_ray.stages.cluster import devices_of

    found = devices_of(experiment.cluster)
    if not found.gpus:
        rates = rates_of("cpu", table)
        return Fleet(replace(rates, memory=found.memory), max(1, found.cpus), measured=True)
    name = found.accelerators[0] if found.accelerators else ""
    kind = kind_named(name, math.inf, table)
    if kind is None:
        raise ConfigError(
            f"the cluster at {address} does not say which GPUs it has, or has some that are not in the table ({name or 'no accelerator type'}); "
            f"name them with --gpus, for example a100-80:{found.gpus}"
        )
    return Fleet(rates_of(kind, table), found.gpus, measured=True)


def free_at(storage: str) -> float | None:
    """Bytes free where a run's folder would be; None for an address or a place that cannot be asked."""
    if "://" in storage:
        return None
    place = Path(storage).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return float(shutil.disk_usage(place).free)
    except OSError:
        return None
