"""Progress of work in other processes, read from the files it leaves: works for any number of groups in any process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unidetox_ray.artifacts import MANIFEST
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.training import Job, read_progress

_POLL_S = 0.5


@contextmanager
def watched(context: Context, label: str, jobs: Sequence[Job]) -> Iterator[None]:
    """Shows the summed steps of `jobs` while the block runs."""
    total = sum(int(job.loop["steps"]) for job in jobs)

    def steps(job: Job) -> int:
        if (Path(job.folder) / MANIFEST).exists():
            return int(job.loop["steps"])
        return read_progress(Path(job.folder))

    with polled(context, label, "steps", total, lambda: sum(steps(job) for job in jobs)):
        yield


@contextmanager
def polled(context: Context, label: str, unit: str, total: int, count: Callable[[], int]) -> Iterator[None]:
    """Shows what `count` says is done of `total` while the block runs."""
    stop = threading.Event()
    with context.display.task(label, unit) as advance:
        advance(0, total)

        def look() -> None:
            while not stop.wait(_POLL_S):
                advance(count(), total)

        thread = threading.Thread(target=look, name=f"watch {label}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            advance(count(), total)
