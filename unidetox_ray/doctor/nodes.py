"""Every node of a running cluster, asked by a small task on it: does it see the same storage, has it the same software?"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import versions
from unidetox_ray.doctor.access import unreachable
from unidetox_ray.doctor.checking import Line, check, fail, ok, skipped, warn
from unidetox_ray.doctor.subject import Subject, existing
from unidetox_ray.errors import UnidetoxError

#: A worker process has to start on every node first, with torch's import behind it.
_ANSWER_SECONDS = 90.0
_SAME = ("python", "torch", "transformers", "ray", "deepspeed", "polars")


def ask_node(folder: str, word: str, number: int) -> str:
    """Runs on a node: what it is, and whether it can read the driver's file and leave one of its own. JSON."""
    import shutil
    import socket

    told: dict[str, Any] = {"host": socket.gethostname(), "problem": ""}
    try:
        from unidetox_ray import __version__
        from unidetox_ray.artifacts import versions

        told["versions"] = {**versions(), "unidetox_ray": __version__}
    except ImportError as error:
        told["versions"], told["missing"] = {}, str(error)
    if folder:
        place = Path(folder)
        try:
            if (place / "driver").read_text() != word:
                told["problem"] = "sees another file of that name"
            (place / f"node-{number}").write_text(word)
            told["free_gib"] = round(shutil.disk_usage(place).free / 2**30, 1)
        except OSError as error:
            told["problem"] = f"{error.strerror}"
    return json.dumps(told)


@check("nodes", seconds=180.0)
def nodes(subject: Subject) -> Iterator[Line]:
    """Joins the cluster that is named, and leaves it as it was."""
    address = subject.address
    if address is None:
        yield skipped("no cluster is named; a run starts a private one on this machine")
        return
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit() and (why := unreachable(host, int(port))):
        yield fail(f"{address}: {why}", "start the cluster (`ray status` there), or correct the address")
        return
    from unidetox_ray.settings import ClusterSection
    from unidetox_ray.stages.cluster import connected

    try:
        with connected(ClusterSection(address=address)):
            yield from _asked(subject)
    except UnidetoxError as error:
        yield fail(
            str(error), "the same RAY_AUTH_MODE and token as where Ray was started; the same Ray version"
        )


def _asked(subject: Subject) -> Iterator[Line]:
    import shutil
    import tempfile

    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    resources = ray.cluster_resources()
    yield ok(
        f"{len(alive)} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, Ray {ray.__version__}"
    )
    if subject.folder is None and len(alive) > 1:
        yield fail(
            f"storage {subject.storage} serves one node, the cluster has {len(alive)}",
            "name a folder that every node sees under one path (NFS, Filestore, EFS, Lustre)",
        )
    word, place = secrets.token_hex(8), None
    if subject.folder is not None and existing(subject.folder).is_dir():
        place = Path(tempfile.mkdtemp(prefix=".unidetox-doctor-", dir=existing(subject.folder)))
        (place / "driver").write_text(word)
    try:
        asked = {}
        task: Any = ray.remote(num_cpus=0, max_retries=0)(ask_node)
        for number, node in enumerate(alive):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=there).remote(str(place or ""), word, number)] = (
                number,
                node,
            )
        answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
        for reference in late:
            yield fail(
                f"node {asked[reference][1]['NodeManagerAddress']}: no answer within {_ANSWER_SECONDS:.0f} s",
                "see `ray status`; a node that is full or gone is replaced by the autoscaler or by hand",
            )
        for reference in answered:
            number, node = asked[reference]
            yield from _judged(reference, number, node, place, subject)
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _judged(
    reference: Any, number: int, node: dict[str, Any], place: Path | None, subject: Subject
) -> Iterator[Line]:
    import ray

    who = f"node {node['NodeManagerAddress']}"
    try:
        told = json.loads(ray.get(reference))
    except ray.exceptions.RayError as error:
        yield fail(f"{who}: {str(error).strip().splitlines()[-1]}", "see Ray's logs on that node")
        return
    who = f"{who} ({told['host']})"
    here = versions()
    other = [
        f"{name} {told['versions'].get(name, 'absent')}, here {here[name]}"
        for name in _SAME
        if told["versions"].get(name) != here[name]
    ]
    if "missing" in told:
        yield fail(f"{who}: {told['missing']}", "install the project there, or submit with --working-dir")
    elif other:
        yield warn(
            f"{who}: {'; '.join(other)}", "the same constraints.txt on every node: numbers differ otherwise"
        )
    if place is None:
        return
    if told["problem"] or not (place / f"node-{number}").is_file():
        why = told["problem"] or "what it writes is not seen here"
        yield fail(f"{who}: {subject.storage}: {why}", "name a folder that every node sees under one path")
    elif "missing" not in told and not other:
        yield ok(f"{who}: same software, shares {subject.storage}, {told['free_gib']} GiB free")
