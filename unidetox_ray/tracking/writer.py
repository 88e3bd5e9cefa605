"""Which process records a run, and whether it still lives: how a run left RUNNING is told from a live one."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path


def writer_id(process: int) -> str:
    """`machine:process:start` of a process: machine is a hash that changes with a reboot, start tells a later
    process with the same number apart ("0" where the system does not say).
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = socket.gethostname() + (boot.read_text() if boot.exists() else "")
    return f"{hashlib.sha256(machine.encode()).hexdigest()[:12]}:{process}:{_start_of(process)}"


def is_alive(writer: str) -> bool | None:
    """Whether a writer's process still runs; None when it is another machine's and cannot be asked."""
    machine, process, _ = writer.split(":")
    if machine != writer_id(os.getpid()).partition(":")[0]:
        return None
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process: it lives
    return writer_id(int(process)) == writer


def _start_of(process: int) -> str:
    """Start time of a process in clock ticks since boot, from field 22 of /proc/<process>/stat."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return "0"
    return stat.rpartition(")")[2].split()[19]
