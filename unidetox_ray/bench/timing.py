"""Clocks and memory: the first run apart, then both sides in turn, the fastest of each."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

GIB = float(1 << 30)
Run = Callable[[], object]


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Run, device: torch.device) -> float:
    """Wall clock of one call, the device's work included."""
    wait_for(device)
    started = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - started


@dataclass
class Clock:
    """Times of one benchmark. first: the first run, with `prepared` seconds before it."""

    prepared: float = 0.0
    first: float = 0.0
    peak_gib: float = 0.0
    runs: list[float] = field(default_factory=list)
    plain_runs: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return min(self.runs)

    @property
    def warmup_seconds(self) -> float:
        """What the first run costs more than a later one."""
        return self.prepared + max(0.0, self.first - self.seconds)

    @property
    def ratio(self) -> float | None:
        """The plain loop's seconds / ours; None when it was not run."""
        return min(self.plain_runs) / self.seconds if self.plain_runs else None

    def warm(self, run: Run, device: torch.device) -> None:
        """The first run, with the peak of memory from here on."""
        self.first = seconds_of(run, device)
        self.peak_gib = peak_gib(device)

    def race(
        self, run: Run | None, plain: Run | None, device: torch.device, *, repeats: int, patience: float
    ) -> None:
        """Ours and the plain loop in turn, `repeats` times each; a side that used `patience` seconds stops."""
        for _ in range(repeats):
            for side, times in ((run, self.runs), (plain, self.plain_runs)):
                if side is not None and (not times or sum(times) < patience):
                    times.append(seconds_of(side, device))


def forget_peak(device: torch.device) -> None:
    """Peaks count from here. On a CPU the kernel's mark for this process, where it can be reset (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        try:
            mark.write_text("5")
        except OSError:
            return  # a locked-down container: the peak is then that of the whole process so far


def peak_gib(device: torch.device) -> float:
    """Device memory allocated at most, or resident memory of this process at most, since `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
