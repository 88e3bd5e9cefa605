"""What every stage is given: the experiment, its folder, its data, and where progress goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from unidetox_ray.artifacts import RunFolder
from unidetox_ray.config import Experiment, digest
from unidetox_ray.errors import ConfigError
from unidetox_ray.settings import DataSource

if TYPE_CHECKING:
    from unidetox_ray.data.base import Loaded


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
    """One row per stage of this run: stage, key, seconds, reused."""
    _tables: dict[str, Loaded] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)
    _connected: bool = False
    _gpu: bool = False

    def connect(self) -> None:
        """Join or start Ray, on the first stage that has work for it: a run that is all done starts nothing."""
        if not self._connected:
            from unidetox_ray.stages.cluster import connected

            self._open.enter_context(connected(self.experiment.cluster))
            self._connected = True
            import ray

            self._gpu = ray.cluster_resources().get("GPU", 0) > 0
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
        self, stage: str, key: str, seconds: float, *, reused: bool, tokens: float = 0, processes: int = 1
    ) -> None:
        """One finished stage. seconds: wall clock here. tokens: generated or trained on. processes: that worked at once."""
        row = {
            "stage": stage,
            "key": key,
            "seconds": seconds,
            "reused": reused,
            "tokens": tokens,
            "processes": processes,
        }
        self.stages.append(row)
        if self.mirror is not None:
            self.mirror.send()

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
