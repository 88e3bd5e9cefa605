"""How many devices a stage holds at once: GPUs where the cluster has them, else CPUs. Told to `Context.record`.

Only what is connected can be asked; a stage whose work was found finished holds nothing.
"""

from __future__ import annotations

from unidetox_ray.stages.context import Context


def by_actors(context: Context, actors: int, items: int | None = None) -> float:
    """A pool of actors; no more than it has orders (`items`), nor than the cluster carries."""
    if not context.connected:
        return 0.0
    from unidetox_ray.stages.cluster import gpus_per_actor

    cluster = context.experiment.cluster
    each = gpus_per_actor(cluster) if context.on_gpu else cluster.cpus_per_actor
    if not each:
        return 0.0
    wanted = actors if items is None else min(actors, max(1, items))
    return float(each * max(1, min(wanted, int(context.devices // each))))


def by_groups(context: Context, groups: int) -> float:
    """Training groups side by side, each of `workers_per_cell` workers."""
    if not context.connected or not groups:
        return 0.0
    from unidetox_ray.stages.cluster import concurrent_groups

    cluster = context.experiment.cluster
    return float(cluster.workers_per_cell * concurrent_groups(cluster, groups))


def by_trials(context: Context, trials: int, most: int | None) -> float:
    """Trials side by side, `most` of them at once where that is set."""
    if not context.connected or not trials:
        return 0.0
    workers = context.experiment.cluster.workers_per_cell
    carried = max(1, int(context.devices // workers))
    return float(workers * max(1, min(trials, most or carried, carried)))


def by_tasks(context: Context, tasks: int, gpus: float) -> float:
    """Ray tasks, each of one CPU and `gpus` GPUs; none of the GPUs of a cluster where they need none."""
    if not context.connected or not tasks:
        return 0.0
    each = gpus if context.on_gpu else 1.0
    return float(min(tasks * each, context.devices))
