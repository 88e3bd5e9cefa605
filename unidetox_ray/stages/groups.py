"""Training groups side by side: one group per family, as many at once as the cluster carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from unidetox_ray.config import digest
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.training import Job, Outcome, run_group
from unidetox_ray.stages.watch import watched


def run_groups(
    context: Context, stage: str, label: str, groups: Mapping[str, Sequence[Job]]
) -> dict[str, Outcome]:
    """Outcome of every job by its name. groups: family -> jobs that share one set of workers. label: for the display."""
    from unidetox_ray.stages.cluster import concurrent_groups

    context.connect()
    cluster, storage = context.experiment.cluster, context.folder.root / "ray"

    def group(item: tuple[str, Sequence[Job]]) -> list[Outcome]:
        family, jobs = item
        name = f"{stage}-{family}-{digest([job.key for job in jobs])[:12]}"
        return run_group(name, jobs, cluster, storage)

    outcomes: list[Outcome] = []
    with (
        watched(context, label, [job for jobs in groups.values() for job in jobs]),
        ThreadPoolExecutor(concurrent_groups(cluster, len(groups)), thread_name_prefix="family") as pool,
    ):
        for result in pool.map(group, groups.items()):
            outcomes.extend(result)
    return {outcome.name: outcome for outcome in outcomes}
