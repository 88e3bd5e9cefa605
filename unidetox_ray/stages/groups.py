"""Training groups side by side: families apart where each has resources of its own, else sharing workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from unidetox_ray.hashing import digest
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.training import Job, Outcome, run_group
from unidetox_ray.stages.watch import watched


def dealt(groups: Mapping[str, Sequence[Job]], at_once: int) -> list[list[Job]]:
    """The families' jobs on as many training groups as run at once, the most jobs first to the shortest group.

    Where every family has its own resources each is a group of its own; where they would wait for one another, they
    share workers, because starting a worker and its imports costs as much as training a small model.
    """
    shares: list[list[Job]] = [[] for _ in range(min(at_once, len(groups)))]
    for jobs in sorted(groups.values(), key=len, reverse=True):
        min(shares, key=len).extend(jobs)
    return shares


def run_groups(
    context: Context, stage: str, label: str, groups: Mapping[str, Sequence[Job]]
) -> dict[str, Outcome]:
    """Outcome of every job by its name. groups: family -> its jobs. label: for the display."""
    from unidetox_ray.stages.cluster import concurrent_groups

    context.connect()
    cluster, storage = context.experiment.cluster, context.folder.root / "ray"
    at_once = concurrent_groups(cluster, len(groups))

    def group(jobs: list[Job]) -> list[Outcome]:
        families = "-".join(dict.fromkeys(job.family for job in jobs))
        name = f"{stage}-{families}-{digest([job.key for job in jobs])[:12]}"
        return run_group(name, jobs, cluster, storage)

    outcomes: list[Outcome] = []
    with (
        watched(context, label, [job for jobs in groups.values() for job in jobs]),
        ThreadPoolExecutor(at_once, thread_name_prefix="family") as pool,
    ):
        for result in pool.map(group, dealt(groups, at_once)):
            outcomes.extend(result)
    return {outcome.name: outcome for outcome in outcomes}
