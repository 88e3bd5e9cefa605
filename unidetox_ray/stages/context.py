"""What every stage is given: the experiment, its folder, its data, and where progress goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from unidetox_ray.artifacts import RunFolder, read_json, write_json
from unidetox_ray.config import Experiment
from unidetox_ray.errors import ConfigError
from unidetox_ray.hashing import digest
from unidetox_ray.settings import DataSource

if TYPE_CHECKING:
    from unidetox_ray.data.base import Loaded


#: What every stage of a run took, in the run folder.
STAGES = "stages.json"


class Display(Protocol):
    """Where a person sees what goes on. `task` yields a function taking (done, total)."""

    def task(self, label: str, unit: str) -> Any: ...

    def say(self, text: str) -> None: ...


class Silent:
    """No display: library use and tests."""

    @contextmanager
    def task(self, label: str, unit: str) -> Iterator[Any]:
        yield lambda done, total: None

    def say(self, text: str) -> None:
        return None


@dataclass
class Context:
    """State of one run on the driver."""

    experiment: Experiment
    folder: RunFolder
    display: Display = field(default_factory=Silent)
    mirror: Any = None
    """remote.Mirror when storage is an address, else None."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """One row per stage of this run, as `stages.json` has them; see `record`."""
    _tables: dict[str, Loaded] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)
    _connected: bool = False
    _gpu: bool = False
    _devices: float = 0.0
    _accelerator: str | None = None
    _before: dict[tuple[str, str], dict[str, Any]] | None = None

    def connect(self) -> None:
        """Join or start Ray, on the first stage that has work for it: a run that is all done starts nothing."""
        if not self._connected:
            from unidetox_ray.stages.cluster import connected

            self._open.enter_context(connected(self.experiment.cluster))
            self._connected = True
            import ray

            found = ray.cluster_resources()
            self._gpu = found.get("GPU", 0) > 0
            self._devices = float(found.get("GPU" if self._gpu else "CPU", 0))
            names = sorted(name.partition(":")[2] for name in found if name.startswith("accelerator_type:"))
            self._accelerator = ", ".join(names) or None
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())
            if self.mirror is not None and nodes > 1:
                raise ConfigError(
                    f"storage = {self.experiment.storage!r} but the cluster has {nodes} nodes, and workers read files; "
                    "give a path that all nodes share (NFS, a mounted bucket)"
                )

    @property
    def on_gpu(self) -> bool:
        """Whether this run's cluster has GPUs; False while no stage had work for a cluster."""
        return self._gpu

    @property
    def connected(self) -> bool:
        """Whether a stage of this run had work for a cluster so far."""
        return self._connected

    @property
    def devices(self) -> float:
        """GPUs of the cluster, or CPUs where it has none; 0 while nothing is connected."""
        return self._devices

    def close(self) -> None:
        """End what `connect` started."""
        self._open.close()
        self._connected = False

    def data(self, role: str, source: DataSource | None) -> Loaded:
        """The table of a role with its hash; loaded once."""
        if source is None:
            raise ConfigError(f"data.{role} is null but a stage needs it; name a data set")
        name = f"{role}/{digest(source.model_dump(mode='json'))}"
        if name not in self._tables:
            from unidetox_ray.data.base import load

            self._tables[name] = load(
                role,
                dataset=source.dataset,
                path=source.path,
                options=source.options,
                data_root=self.experiment.data.data_root,
                revision=source.revision,
            )
        return self._tables[name]

    def limited(self, table: pl.DataFrame, by: str | None = None) -> pl.DataFrame:
        """At most `limit` rows of the experiment's; see `spread`."""
        return spread(table, self.experiment.limit, by)

    def take_data(self, other: Context) -> None:
        """What another context has loaded, as if it had been loaded here."""
        self._tables.update(other._tables)

    def use_prompts(self, table: pl.DataFrame, sha256: str) -> None:
        """Prompts that were given rather than named: stage verbs on a user's own file."""
        from unidetox_ray.data.base import Loaded
        from unidetox_ray.schemas import PROMPTS, check

        source = self.experiment.data.prompts
        name = f"prompts/{digest(source.model_dump(mode='json'))}"
        self._tables[name] = Loaded(check(table, PROMPTS, "prompts"), sha256, "given", {})

    def prompts(self, split: str) -> pl.DataFrame:
        loaded = self.data("prompts", self.experiment.data.prompts)
        return self.limited(loaded.table.filter(pl.col("split") == split), by="domain")

    def prompts_sha(self) -> str:
        return self.data("prompts", self.experiment.data.prompts).sha256

    def record(
        self,
        stage: str,
        key: str,
        seconds: float,
        *,
        reused: bool,
        tokens: float = 0,
        processes: int = 1,
        devices: float = 0.0,
        partial: bool = False,
    ) -> None:
        """One finished stage, into `stages.json`.

        seconds: wall clock here. tokens: generated or trained on. processes: that worked at once. devices: GPUs, or CPUs where
        the cluster has none, that it held from start to end (`stages.held`). partial: some of its work was found finished. What a reused stage took when it was made is kept
        from the run that made it, under `spent`; null where no run left it.
        """
        spent: dict[str, Any] | None
        if reused:
            spent = (self._stages_before().get((stage, key)) or {}).get("spent")
        else:
            spent = {
                "seconds": round(seconds, 3), "device": "gpu" if self._gpu else "cpu", "devices": devices,
                "device_seconds": round(seconds * devices, 3), "tokens": tokens, "cluster_devices": self._devices,
                "partial": partial, "accelerator": self._accelerator,
            }  # fmt: skip
        row = {
            "stage": stage,
            "key": key,
            "seconds": seconds,
            "reused": reused,
            "tokens": tokens,
            "processes": processes,
            "spent": spent,
        }
        self._stages_before()  # read before it is written over
        self.stages.append(row)
        write_json(self.folder.root / STAGES, self.stages)
        if self.mirror is not None:
            self.mirror.send()

    def _stages_before(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The rows that earlier runs left here, by stage and key; of a stage that comes twice, the one that did the work."""
        if self._before is None:
            self._before = {}
            path = self.folder.root / STAGES
            rows = read_json(path) if path.exists() else []
            for row in rows if isinstance(rows, list) else []:
                if isinstance(row, dict) and row.get("spent"):
                    self._before[str(row.get("stage")), str(row.get("key"))] = row
        return self._before

    def data_hashes(self) -> dict[str, str]:
        """What was read so far: role and source -> sha256."""
        return {name: loaded.sha256 for name, loaded in sorted(self._tables.items())}


def spread(table: pl.DataFrame, limit: int | None, by: str | None = None) -> pl.DataFrame:
    """The first `limit` rows; with `by`, spread evenly over that column's values, in a fixed order."""
    if limit is None or table.height <= limit:
        return table
    if by is None:
        return table.head(limit)
    values = table[by].unique(maintain_order=True).to_list()
    base, extra = divmod(limit, len(values))
    heads = [
        table.filter(pl.col(by) == value).head(base + (index < extra)) for index, value in enumerate(values)
    ]
    kept = pl.concat(heads).with_columns(pl.lit(True).alias("_kept")).select(table.columns[0], "_kept")
    return table.join(kept, on=table.columns[0], how="semi", maintain_order="left")


def absolute(path: str) -> str:
    """Workers run in another folder: paths leave the driver absolute."""
    return str(Path(path).expanduser().absolute())
