"""One line of the report, the registry of checks, and how they are run: one after another, each with a time limit of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from unidetox_ray.doctor.subject import Subject
from unidetox_ray.errors import printable
from unidetox_ray.secrecy import redacted

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Line:
    """status: ok | warn (it will run, but) | fail (it will not, or not safely) | skipped (could not be looked at, or is not wanted).

    seen: what was found. remedy: what to do, for every line that is not ok.
    """

    status: Status
    seen: str
    remedy: str = ""
    check: str = ""
    """The check that said it; set by `examine`."""


Check = Callable[[Subject], Line | Iterable[Line]]


@dataclass(frozen=True)
class Registered:
    look: Check
    seconds: float
    """After these the check counts as hanging: a mount that does not answer must not hang the command."""


CHECKS: dict[str, Registered] = {}


def check(name: str, *, seconds: float = 30.0) -> Callable[[Check], Check]:
    """Register a check under a name; the report lists checks in the order in which they were registered."""

    def register(look: Check) -> Check:
        assert name not in CHECKS, name
        CHECKS[name] = Registered(look, seconds)
        return look

    return register


def ok(seen: str) -> Line:
    return Line("ok", seen)


def warn(seen: str, remedy: str) -> Line:
    return Line("warn", seen, remedy)


def fail(seen: str, remedy: str) -> Line:
    return Line("fail", seen, remedy)


def skipped(seen: str, remedy: str = "") -> Line:
    return Line("skipped", seen, remedy)


def examine(subject: Subject, only: Iterable[str] | None = None) -> list[Line]:
    """All checks, or those named. Never raises: what goes wrong inside a check is its line."""
    lines: list[Line] = []
    for name in CHECKS if only is None else only:
        lines += [_shown(name, line) for line in _limited(CHECKS[name], subject)]
    return lines


def _limited(registered: Registered, subject: Subject) -> list[Line]:
    found: list[Line] = []

    def look() -> None:
        try:
            seen = registered.look(subject)
            found.extend([seen] if isinstance(seen, Line) else seen)
        except Exception as error:
            # The line of the check that failed: the others are still worth having.
            found[:] = [
                fail(
                    f"the check itself failed: {type(error).__name__}: {error}",
                    "the reason stands before this; if it is not of this machine's making, report it",
                )
            ]

    # A daemon: one that hangs in the operating system cannot be ended, and must not keep the command from ending.
    worker = threading.Thread(target=look, daemon=True, name="check")
    worker.start()
    worker.join(registered.seconds)
    if worker.is_alive():
        return [
            fail(
                f"no answer within {registered.seconds:.0f} s",
                "look for a mount, a name server or a proxy that hangs",
            )
        ]
    return found


def _shown(name: str, line: Line) -> Line:
    return replace(
        line, check=name, seen=printable(redacted(line.seen)), remedy=printable(redacted(line.remedy))
    )


def text(lines: list[Line]) -> str:
    """The report for a terminal: a line each, its remedy below it where it is not ok."""
    width = max((len(line.check) for line in lines), default=0)
    shown = []
    for line in lines:
        shown.append(f"{line.status:<7}  {line.check:<{width}}  {line.seen}")
        if line.remedy:
            shown.append(f"{'':<{9 + width}}  -> {line.remedy}")
    counts = {
        status: sum(line.status == status for line in lines) for status in ("ok", "warn", "fail", "skipped")
    }
    return "\n".join([*shown, ", ".join(f"{count} {status}" for status, count in counts.items())])
