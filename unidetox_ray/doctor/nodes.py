"""Every node of a running cluster, asked by a small task on it: does it see the same storage, has it the same software?"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidetox_ray.artifacts import versions
from unidetox_ray.doctor.access import unreachable
from unidetox_ray.doctor.checking import Line, check, fail, ok, skipped, warn
from unidetox_ray.doctor.subject import Subject, existing
from unidetox_ray.errors import ConfigError, UnidetoxError

if TYPE_CHECKING:
    from unidetox_ray.stages.nodes import Answer

#: A worker process has to start on every node first, with torch's import behind it.
_ANSWER_SECONDS = 90.0
_SAME = ("python", "torch", "transformers", "ray", "deepspeed", "polars")


def ask_node(folder: str, word: str) -> str:
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
        told["left"] = f"node-{secrets.token_hex(8)}"
        try:
            if (place / "driver").read_text() != word:
                told["problem"] = "sees another file of that name"
            (place / told["left"]).write_text(word)
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
    except ConfigError as error:
        yield fail(str(error), "correct the address")
    except UnidetoxError as error:
        yield fail(
            str(error), "the same RAY_AUTH_MODE and token as where Ray was started; the same Ray version"
        )


def _asked(subject: Subject) -> Iterator[Line]:
    import shutil
    import tempfile

    from unidetox_ray.stages.cluster import devices
    from unidetox_ray.stages.nodes import asked

    there = devices()
    yield ok(f"{there.nodes} nodes, {there.cpus} CPUs, {there.gpus} GPUs, Ray {versions()['ray']}")
    if subject.folder is None and there.nodes > 1:
        yield fail(
            f"storage {subject.storage} serves one node, the cluster has {there.nodes}",
            "name a folder that every node sees under one path (NFS, Filestore, EFS, Lustre)",
        )
    word, place = secrets.token_hex(8), None
    try:
        if subject.folder is not None and existing(subject.folder).is_dir():
            place = Path(tempfile.mkdtemp(prefix=".unidetox-doctor-", dir=existing(subject.folder)))
            (place / "driver").write_text(word)
    except OSError as error:
        yield fail(
            f"{subject.storage}: cannot be written from here ({error.strerror})",
            "name a folder that every node sees under one path",
        )
    try:
        for answer in asked(ask_node, str(place or ""), word, seconds=_ANSWER_SECONDS):
            yield from _judged(answer, place, subject)
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _judged(answer: Answer, place: Path | None, subject: Subject) -> Iterator[Line]:
    who = f"node {answer.address}"
    if answer.late:
        yield fail(
            f"{who}: no answer within {_ANSWER_SECONDS:.0f} s",
            "see `ray status`; a node that is full or gone is replaced by the autoscaler or by hand",
        )
        return
    if answer.error:
        yield fail(f"{who}: {answer.error}", "see Ray's logs on that node")
        return
    told = json.loads(answer.value)
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
    if told["problem"] or not (place / told["left"]).is_file():
        why = told["problem"] or "what it writes is not seen here"
        yield fail(f"{who}: {subject.storage}: {why}", "name a folder that every node sees under one path")
    elif "missing" not in told and not other:
        yield ok(f"{who}: same software, shares {subject.storage}, {told['free_gib']} GiB free")
