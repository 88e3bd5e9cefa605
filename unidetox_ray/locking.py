"""One writer per folder: two submissions of one run, or two runs that pre-train one model, do not mix their files.

The lock is the operating system's own (flock), which ends with its process however that dies: a stale lock is none. The
file beside it only says who holds it, for the message.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unidetox_ray.errors import ConfigError

LOCK = ".lock"
HOLDER = ".lock.json"

#: A SIGKILLed driver's children may hold on to the lock for the moment that Ray needs to end them.
_GRACE_SECONDS = 2.0


@contextmanager
def only_writer(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder` until the end of the block; ConfigError, one line, where another process has it.

    what: the thing in the folder, for the message. The folder exists.
    """
    lock = _lock(folder)
    if not _taken(lock, folder, _GRACE_SECONDS):
        raise ConfigError(
            f"{folder}: {what} is being written by {holder(folder)}; wait for it, end it, or give this run another name"
        )
    with _held(lock, folder):
        yield


@contextmanager
def turn(folder: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `folder` until the end of the block, waiting for another process that has it.

    say: told once whom this waits for.
    """
    lock = _lock(folder)
    if not _taken(lock, folder, 0.0):
        say(f"waiting for {holder(folder)}, which makes {what} ({folder})")
        _taken(lock, folder, -1.0)
    with _held(lock, folder):
        yield


def holder(folder: Path) -> str:
    """Who holds a folder's lock, as far as its holder has said."""
    try:
        values = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {values['process']} on {values['host']} since {values['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _lock(folder: Path) -> Any:
    from filelock import FileLock

    return FileLock(folder / LOCK, mode=0o600)


def _taken(lock: Any, folder: Path, patience: float) -> bool:
    """Whether the lock could be had within `patience` seconds (< 0: for ever)."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return False
    except NotImplementedError:
        pass  # no locks on this file system (some network mounts): there, only their names keep runs apart
    except OSError as error:
        raise ConfigError(
            f"storage: {folder / LOCK} cannot be written ({error.strerror}); give a folder you own, with space left"
        ) from None
    return True


@contextmanager
def _held(lock: Any, folder: Path) -> Iterator[None]:
    try:
        values = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (folder / HOLDER).write_text(json.dumps(values) + "\n", encoding="utf-8")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()
