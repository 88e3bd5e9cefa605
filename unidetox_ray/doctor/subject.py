"""What is examined: an experiment or none, the storage it writes to, the cluster it would run on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unidetox_ray.settings import is_url

if TYPE_CHECKING:
    from unidetox_ray.config import Experiment

DEFAULT_STORAGE = "outputs"


@dataclass(frozen=True)
class Subject:
    """storage: a path or an address. address: of a running Ray cluster, null = a private one on this machine."""

    experiment: Experiment | None = None
    storage: str = DEFAULT_STORAGE
    address: str | None = None

    @property
    def folder(self) -> Path | None:
        """The storage where it is a folder, absolute; null where it is an address."""
        return None if is_url(self.storage) else Path(self.storage).expanduser().absolute()

    @property
    def tracking_uri(self) -> str:
        """The store as the experiment names it, the default where it names none."""
        named = self.experiment.tracking.uri if self.experiment is not None else None
        return named if named is not None else f"sqlite:///{Path('mlruns/mlflow.db').absolute()}"


def subject_of(experiment: Experiment | None, address: str | None = None) -> Subject:
    """address: as on the command line; else the experiment's own, else RAY_ADDRESS, as a run would choose."""
    storage = experiment.storage if experiment is not None else DEFAULT_STORAGE
    named = address or (experiment.cluster.address if experiment is not None else None)
    return Subject(experiment, storage, named or os.environ.get("RAY_ADDRESS") or None)


def existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there: where a new folder would be made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
