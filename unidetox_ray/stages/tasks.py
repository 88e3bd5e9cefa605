"""Work of its own kind per item, each a Ray task that leaves a finished folder: pre-training, edits, fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from unidetox_ray.errors import UnidetoxError
from unidetox_ray.stages.context import Context

Task = dict[str, Any]


def run_tasks(
    context: Context,
    work: Callable[[str], None],
    tasks: Sequence[Task],
    failed: Callable[[Task, str, type[UnidetoxError]], None],
    *,
    label: str,
    unit: str,
    gpus: float = 0.0,
) -> None:
    """Hand every task (plain values, as JSON) to `work` on the cluster and wait for all of them.

    failed: told the task, what a person wants to read and the kind of error, as each fails; what it raises ends the wait.
    gpus: of each task, beside one CPU. The cluster has been joined.
    """
    import ray

    from unidetox_ray.stages.training import failure

    # Models are large: tasks that may run at once go to different nodes, where there are several, before they share one's memory.
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=1, scheduling_strategy="SPREAD")(work)
    pending = {remote.remote(json.dumps(task)): task for task in tasks}
    total = len(pending)
    with context.display.task(label, unit) as advance:
        advance(0, total)
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            for reference in ready:
                task = pending.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    failed(task, *failure(error))
                advance(total - len(pending), total)
