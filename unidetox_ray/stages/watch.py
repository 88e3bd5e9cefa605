"""Progress of training jobs, read from the files they leave: works for any number of groups in any process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unidetox_ray.artifacts import MANIFEST
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.training import Job, read_progress

_POLL_S = 0.5


@contextmanager
def watched(context: Context, label: str, jobs: Sequence[Job]) -> Iterator[None]:
    """Shows the summed steps of `jobs` while the block runs."""
    stop = threading.Event()
    total = sum(int(job.loop["steps"]) for job in jobs)

    def steps(job: Job) -> int:
        if (Path(job.folder) / MANIFEST).exists():
            return int(job.loop["steps"])
        return read_progress(Path(job.folder))

    with context.display.task(label, "steps") as advance:
        advance(0, total)

        def look() -> None:
            while not stop.wait(_POLL_S):
                advance(sum(steps(job) for job in jobs), total)

        thread = threading.Thread(target=look, name=f"watch {label}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            advance(sum(steps(job) for job in jobs), total)
