"""What an experiment takes: memory of one process by its plan, and room on the storage and for downloads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unidetox_ray.config import Experiment
    from unidetox_ray.plan.devices import Fleet

#: Bytes a parameter in the hub's files at most: many repositories hold float32.
_DOWNLOADED = 4


def needs(experiment: Experiment, fleet: Fleet | None = None) -> dict[str, float]:
    """memory_gib: of one device (of the machine, where there is none), at its fullest; disk_gib: of downloads and the storage.

    fleet: the devices; None: this machine's. UnidetoxError, one line, where a model's shape is not known here.
    """
    from unidetox_ray.plan.planning import plan
    from unidetox_ray.plan.result import GIB

    made = plan(experiment, fleet, advise=False)
    hub = [
        family for family in made.models if family in experiment.models and _downloaded(experiment, family)
    ]
    downloads = sum(_DOWNLOADED * made.models[family] for family in hub)
    return {
        "memory_gib": max((cell.peak for cell in made.cells), default=0.0) / GIB,
        "disk_gib": (made.disk + downloads) / GIB,
    }


def _downloaded(experiment: Experiment, family: str) -> bool:
    source = experiment.model_of(family).source
    return source != "scratch:" and not Path(source).expanduser().is_dir()
