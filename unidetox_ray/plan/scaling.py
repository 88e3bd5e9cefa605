"""The same experiment on 1, 2, 4, … 1,000 devices: the schedule event by event, and what keeps it from going faster.

At each size the settings are what one would set for it: as many actors as devices, every family at once, and the number of
workers a cell that makes the trainings shortest (a divisor of the batch sizes). What the run's results depend on stays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from unidetox_ray.config import Experiment
from unidetox_ray.plan import engine
from unidetox_ray.plan.amounts import Amounts
from unidetox_ray.plan.devices import Fleet
from unidetox_ray.plan.work import Work

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
#: Doubling the devices saves less than this share of the time: scaling has ended.
ENDED = 0.10
_TRAINS = ("toxic", "search", "tune-trainings", "finetune")


@dataclass(frozen=True)
class Size:
    """One line of the table. workers: a cell. efficiency: speed-up over one device, divided by the devices. lost: shares of the
    devices' time by reason. stage: where most time is lost to the bottleneck."""

    devices: int
    workers: int
    seconds: float
    speedup: float
    efficiency: float
    bottleneck: str
    stage: str
    lost: dict[str, float]


@dataclass(frozen=True)
class Scaling:
    sizes: tuple[Size, ...]
    ends: Size | None
    """The size from which doubling gains less than `ENDED`; None where it went on to the last."""

    def as_dict(self) -> dict[str, object]:
        return {
            "sizes": [
                {
                    "gpus": s.devices, "workers_per_cell": s.workers, "seconds": float(f"{s.seconds:.6g}"),
                    "speedup": round(s.speedup, 3), "efficiency": round(s.efficiency, 4), "bottleneck": s.bottleneck, "stage": s.stage,
                    "lost": {name: round(share, 4) for name, share in s.lost.items()},
                }
                for s in self.sizes
            ],
            "ends_at": None if self.ends is None else self.ends.devices,
            "why": None if self.ends is None else f"{self.ends.stage}: {self.ends.bottleneck}",
        }  # fmt: skip

    @property
    def sentence(self) -> str:
        last = self.sizes[-1]
        if self.ends is None:
            return f"Scaling does not end before {last.devices} devices."
        return (
            f"Scaling ends at {self.ends.devices} device{'s' if self.ends.devices > 1 else ''}: twice as many save less than "
            f"{100 * ENDED:.0f} % of the time, for {self.ends.stage} loses most, to {_WORDS[self.ends.bottleneck]}."
        )


_WORDS = {
    "work": "the work itself",
    "start-up": "the start of its processes",
    "model loading": "reading models from the storage",
    "driver": "the driver, which hands out one order at a time",
    "longest cell": "its longest cell, which no further device can help with",
    "shard granularity": "its shards, of which there are too few to deal out",
    "one process": "what one process does alone",
}


def simulated(experiment: Experiment, fleet: Fleet, counts: Iterable[int] = COUNTS) -> Scaling:
    """The table of sizes. fleet: whose kind of device is taken."""
    amounts = Amounts(experiment)
    found: list[Size] = []
    for count in counts:
        made = replace(fleet, count=count)
        workers = _workers(experiment, amounts, made)
        stages = Work(_as(amounts, experiment, count, workers), made).stages
        schedule = engine.scheduled(stages, made, bars=False)
        first = found[0].seconds * found[0].devices if found else schedule.seconds * count
        found.append(_size(schedule, count, workers, first))
    return Scaling(tuple(found), _end(found))


def _end(sizes: Sequence[Size]) -> Size | None:
    for here, further in itertools.pairwise(sizes):
        if further.seconds > (1 - ENDED) * here.seconds:
            return here
    return None


def _as(amounts: Amounts, experiment: Experiment, count: int, workers: int) -> Amounts:
    """The amounts with the cluster's settings for so many devices; what was counted is shared."""
    cluster = experiment.cluster.model_copy(
        update={
            "corpus_actors": count, "generate_actors": count, "score_actors": count, "workers_per_cell": workers,
            "concurrent_cells": None, "gpus_per_actor": None,
        }
    )  # fmt: skip
    amounts.experiment = experiment.model_copy(update={"cluster": cluster})
    return amounts


def _workers(experiment: Experiment, amounts: Amounts, fleet: Fleet) -> int:
    """The number of workers a cell that makes the trainings shortest."""
    common = math.gcd(experiment.toxic.batch_size, experiment.finetune.batch_size)
    best = (math.inf, 1)
    for workers in (w for w in range(1, common + 1) if common % w == 0 and w <= fleet.count):
        stages = [
            s for s in Work(_as(amounts, experiment, fleet.count, workers), fleet).stages if s.name in _TRAINS
        ]
        seconds = engine.scheduled(stages, fleet, bars=False).seconds
        best = min(best, (seconds, workers))
    return best[1]


def _size(schedule: engine.Schedule, count: int, workers: int, first: float) -> Size:
    lost: dict[str, float] = {}
    worst = ("", "work", 0.0)
    for ran in schedule.ran:
        for name, amount in ran.lost.items():
            lost[name] = lost.get(name, 0.0) + amount
    total = max(count * schedule.seconds, 1e-9)
    busy = sum(ran.busy for ran in schedule.ran)
    reason = max(lost, key=lambda name: lost[name]) if lost else "work"
    if lost and lost[reason] > 0.05 * total:
        stage = max(schedule.ran, key=lambda ran: ran.lost.get(reason, 0.0)).stage.name
        worst = (stage, reason, lost[reason])
    else:
        longest = max(schedule.ran, key=lambda ran: ran.seconds)
        worst = (longest.stage.name, "work", busy)
    speedup = first / schedule.seconds if schedule.seconds else 1.0
    return Size(
        count,
        workers,
        schedule.seconds,
        speedup,
        speedup / count,
        worst[1],
        worst[0],
        {n: v / total for n, v in lost.items()},
    )
