"""A real Ray cluster of two nodes on this machine: each in a network of its own, joined by a cable, with its own raylet.

Where network namespaces cannot be made (no root, no `ip`), both nodes share this machine's loopback; all else is the same. What is
started here is ended here, by process id.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = Path(sys.executable).with_name("ray")
PATIENCE = 180.0
#: Where a node's work shows: Ray titles its workers so.
WORK = ("MapWorker", "RayTrainWorker", "ImplicitFunc", "MeasureTrial")
#: Documentation addresses (RFC 5737): they route nowhere.
_ADDRESSES = ("192.0.2.1", "192.0.2.2")


@dataclass
class Network:
    """Where a node lives: the words before each of its commands, and its address."""

    prefix: tuple[str, ...] = ()
    address: str = "127.0.0.1"


@contextmanager
def networks(apart: Path) -> Iterator[list[Network]]:
    """Two networks of one machine each that reach one another and nothing else; the loopback twice where that cannot be.

    apart: a folder that the second machine has a disk of its own for.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter", "mount"))):
        yield [Network(), Network()]
        return
    disks = ["true", f"mount -t tmpfs tmpfs {apart}"]
    holders = [
        subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", f"ip link set lo up && {disk} && echo ready && exec sleep 3600"],
            stdout=subprocess.PIPE,
        )
        for disk in disks
    ]  # fmt: skip
    try:
        if any(holder.stdout is None or holder.stdout.readline() != b"ready\n" for holder in holders):
            yield [Network(), Network()]
            return
        one, other = (str(holder.pid) for holder in holders)
        cable = [
            "ip",
            "link",
            "add",
            "node0",
            "netns",
            one,
            "type",
            "veth",
            "peer",
            "name",
            "node1",
            "netns",
            other,
        ]
        if subprocess.run(cable, capture_output=True).returncode:
            yield [Network(), Network()]
            return
        found = [
            Network(("nsenter", "-t", str(holder.pid), "-n", "-m"), address)
            for holder, address in zip(holders, _ADDRESSES, strict=True)
        ]
        for number, (network, peer) in enumerate(zip(found, reversed(_ADDRESSES), strict=True)):
            device = f"node{number}"
            for words in (
                f"addr add {network.address}/24 dev {device}",
                f"link set {device} up",
                f"route add default via {peer}",
            ):
                subprocess.run([*network.prefix, "ip", *words.split()], check=True)  # fmt: skip
        yield found
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


@dataclass
class Node:
    """One `ray start --block` and all that it started."""

    network: Network
    process: subprocess.Popen[bytes]
    log: Path

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def working(self) -> set[str]:
        """Kinds of workers that run on this node now."""
        titles = []
        for each in self.descendants():
            try:
                titles.append(" ".join(each.cmdline()))
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return {kind for kind in WORK if any(kind in title for title in titles)}

    def lose(self) -> None:
        """SIGKILL to the raylet, its agents and its workers at once, as when the machine is taken away."""
        everything = [*self.descendants(), psutil.Process(self.process.pid)]
        for each in everything:
            try:
                each.send_signal(signal.SIGSTOP)  # or the first to notice would tell the cluster why
            except psutil.NoSuchProcess:
                continue
        for each in everything:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(60)
        psutil.wait_procs(everything, timeout=60)

    def end(self) -> None:
        """SIGTERM, and SIGKILL for what is left of it."""
        everything = self.descendants()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(60)
        for each in everything:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(everything, timeout=60)


@dataclass
class TwoNodes:
    """The head and a second node. seen: node number -> kinds of workers that ran there so far (`look`)."""

    networks: list[Network]
    place: Path
    environment: dict[str, str]
    port: int
    nodes: list[Node] = field(default_factory=list)
    seen: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def address(self) -> str:
        return f"{self.networks[0].address}:{self.port}"

    @property
    def apart(self) -> Path | None:
        """A folder that is another one on each node; null where both live on one machine."""
        return self.place / "apart" if self.networks[0].prefix else None

    @property
    def wrapper(self) -> tuple[str, ...]:
        """Words before a command that is to run on the head's machine."""
        return self.networks[0].prefix

    def ask(self, source: str) -> str:
        """What a Python program prints that has joined the cluster as `ray`; empty when it could not."""
        program = (
            f"import ray; ray.init({self.address!r}, log_to_driver=False, logging_level='ERROR'); {source}"
        )
        done = subprocess.run(
            [*self.wrapper, sys.executable, "-c", program], env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )  # fmt: skip
        return done.stdout.strip() if done.returncode == 0 else ""

    def known(self) -> int:
        """Nodes that have ever joined; one that was lost counts as alive until the cluster has missed it."""
        return int(self.ask("print(len(ray.nodes()))") or 0)

    def start(self, cpus: int) -> Node:
        """Start the head, or the second node beside it; returns when the cluster counts it."""
        number = min(len(self.nodes), 1)
        network = self.networks[number]
        folder = self.place / f"n{number}"
        where = (
            ["--head", f"--port={self.port}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
            if number == 0
            else [f"--address={self.address}"]
        )
        before = self.known() if self.nodes else 0
        log = self.place / f"node{number}-{len(list(self.place.glob('*.log')))}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*network.prefix, str(RAY), "start", "--block", f"--num-cpus={cpus}", f"--node-ip-address={network.address}",
                 f"--temp-dir={folder}", *where],
                env=self.environment, stdout=stream, stderr=subprocess.STDOUT, cwd=self.place,
            )  # fmt: skip
        node = Node(network, process, log)
        self.nodes[number:] = [node]
        until = time.monotonic() + PATIENCE
        while self.known() <= before:
            assert process.poll() is None and time.monotonic() < until, log.read_text(errors="replace")[
                -2000:
            ]
            time.sleep(0.5)
        return node

    def look(self) -> None:
        for number, node in enumerate(self.nodes):
            self.seen[number] |= node.working()


@contextmanager
def two_nodes(cpus: int = 1) -> Iterator[TwoNodes]:
    """Two nodes of this many CPUs each, with token authentication."""
    # Sockets lie below Ray's folder, and a socket's path may hold some hundred characters.
    place = Path(tempfile.mkdtemp(prefix="ux2", dir="/tmp"))
    token = place / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        (place / "apart").mkdir(mode=0o700)
        found = stack.enter_context(networks(place / "apart"))
        cluster = TwoNodes(found, place, environment, port=_port())
        stack.callback(lambda: [node.end() for node in reversed(cluster.nodes)])
        cluster.start(cpus)
        cluster.start(cpus)
        yield cluster


def _port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
