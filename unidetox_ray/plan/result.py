"""What a plan says: cells, stages, totals, and the JSON of `plan --json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unidetox_ray.config import Experiment
from unidetox_ray.plan.devices import Fleet
from unidetox_ray.plan.engine import Cell, Schedule
from unidetox_ray.plan.memory import Memory

BASELINE = "a100-80:1"
GIB = 2**30


@dataclass(frozen=True)
class CellPlan:
    """What one cell of a stage takes. seconds: from its first start to its last end. devices: it holds at once, at most.

    memory: of one process. disk: bytes that stay. why: where it does not fit, what does not.
    """

    cell: Cell
    devices: float
    seconds: float
    device_seconds: float
    memory: Memory
    peak: float
    disk: float
    operations: float
    fits: bool
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class StagePlan:
    stage: str
    start: float
    seconds: float
    lanes: int
    device_seconds: float
    tokens: float
    operations: float
    bottleneck: str


@dataclass
class Plan:
    """problems: one line each, of what cannot run; empty where the plan can be followed. baseline: seconds on one A100; None
    with the reason in `baseline_why`."""

    experiment: Experiment
    fleet: Fleet
    stages: list[StagePlan]
    cells: list[CellPlan]
    schedule: Schedule
    models: dict[str, int]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    baseline: float | None = None
    baseline_why: str = ""
    price: float | None = None

    @property
    def seconds(self) -> float:
        return self.schedule.seconds

    @property
    def device_hours(self) -> float:
        """Devices held x time, over all stages."""
        return sum(stage.device_seconds for stage in self.stages) / 3600.0

    @property
    def rented_hours(self) -> float:
        """Devices of the fleet x time: what a rented cluster costs."""
        return self.fleet.count * self.seconds / 3600.0

    @property
    def speedup(self) -> float | None:
        return None if self.baseline is None or not self.seconds else self.baseline / self.seconds

    @property
    def efficiency(self) -> float | None:
        """Speed-up per GPU; None without GPUs, whose number the baseline's one could be compared with."""
        return None if self.speedup is None or not self.fleet.gpu else self.speedup / self.fleet.count

    @property
    def disk(self) -> float:
        return sum(cell.disk for cell in self.cells)

    def as_dict(self) -> dict[str, Any]:
        """What `plan --json` prints."""
        gpu = self.fleet.gpu
        cost = None if self.price is None else self.price * self.rented_hours
        return {
            "experiment": self.experiment.name, "key": self.experiment.key, "fleet": self.fleet.name,
            "device": self.fleet.rates.title,
            "stages": [
                {
                    "stage": s.stage, "start": _rounded(s.start), "seconds": _rounded(s.seconds), "lanes": s.lanes,
                    "gpu_seconds": _rounded(s.device_seconds if gpu else 0.0), "device_seconds": _rounded(s.device_seconds),
                    "tokens": round(s.tokens), "flops": _rounded(s.operations), "bottleneck": s.bottleneck,
                }
                for s in self.stages
            ],
            "cells": [
                {
                    "stage": c.cell.stage, "family": c.cell.family or None, "method": c.cell.method or None, "seed": c.cell.seed,
                    "gpus": c.devices if gpu else 0, "devices": c.devices, "peak_gib": _rounded(c.peak / GIB),
                    "disk_gib": _rounded(c.disk / GIB), "seconds": _rounded(c.seconds),
                    "gpu_seconds": _rounded(c.device_seconds if gpu else 0.0), "device_seconds": _rounded(c.device_seconds),
                    "flops": _rounded(c.operations), "memory_gib": c.memory.as_gib(), "fits": c.fits,
                    "why": c.why or None, "remedy": c.remedy or None,
                }
                for c in self.cells
            ],
            "schedule": [
                {"stage": r.stage.name, "cell": b.cell.name, "lane": b.lane, "start": _rounded(b.start), "end": _rounded(b.end)}
                for r in self.schedule.ran
                for b in r.bars
            ],
            "models": self.models,
            "totals": {
                "seconds": _rounded(self.seconds), "device_hours": _rounded(self.device_hours),
                "gpu_hours": _rounded(self.device_hours) if gpu else 0.0, "rented_hours": _rounded(self.rented_hours),
                "disk_gib": _rounded(self.disk / GIB), "memory_gib": _rounded(self.fleet.memory / GIB),
                "price_per_hour": self.price, "cost": None if cost is None else round(cost, 2),
            },
            "baseline": {
                "fleet": BASELINE, "seconds": None if self.baseline is None else _rounded(self.baseline),
                "speedup": None if self.speedup is None else _rounded(self.speedup),
                "efficiency": None if self.efficiency is None else _rounded(self.efficiency),
                "why_not": self.baseline_why or None,
            },
            "problems": self.problems, "notes": self.notes, "fits": not self.problems,
        }  # fmt: skip


def _rounded(value: float) -> float:
    """Six significant figures."""
    return float(f"{value:.6g}")
