"""Every node of the joined cluster, asked by a small task on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Of one node. address: where it is. value: what the function returned there, None with an error (its last line) or late."""

    address: str
    value: Any = None
    error: str = ""
    late: bool = False


def asked(work: Callable[..., Any], *arguments: Any, seconds: float) -> Iterator[Answer]:
    """`work(*arguments)` once on every node that is alive, on all at once; their answers in the order of `ray.nodes()`.

    No CPU is waited for: a busy node answers too. A node that has not answered after `seconds` is late; starting a worker
    process there counts. The cluster has been joined.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(work)
    references = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            reference = task.options(scheduling_strategy=there).remote(*arguments)
            references[reference] = str(node["NodeManagerAddress"])
    _, late = ray.wait(list(references), num_returns=len(references), timeout=seconds)
    for reference, address in references.items():
        if reference in late:
            yield Answer(address, late=True)
            continue
        try:
            yield Answer(address, ray.get(reference))
        except ray.exceptions.RayError as error:
            yield Answer(address, error=str(error).strip().splitlines()[-1])
