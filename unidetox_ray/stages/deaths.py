"""Whether a worker's process died, as opposed to its code having failed: the one is worth another try, the other is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E")

#: Of Ray and Ray Train, for a process that was killed, crashed, or went with its node; by name, as they wrap each other.
_DEATHS = {
    "RayActorError", "ActorDiedError", "ActorUnavailableError", "NodeDiedError", "OwnerDiedError", "WorkerCrashedError",
    "OutOfMemoryError", "WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError",
}  # fmt: skip


def died(problem: BaseException | None) -> bool:
    """True when somewhere in what Ray wrapped a process died and nowhere did code of ours raise.

    With several workers, one's death makes the others fail in their collectives: a death among the failures is the cause
    unless one of them is an error of ours.
    """
    from unidetox_ray.errors import UnidetoxError

    found = list(_inside(problem))
    named = [each for each in found if f"{UnidetoxError.__module__}." in str(each)]
    return not named and any(_is_death(each) for each in found)


def tried_again(
    waiting: Sequence[T],
    tries: int,
    name: Callable[[T], str],
    attempt: Callable[[Sequence[T], int], dict[str, E]],
    deadly: Callable[[E], bool],
) -> dict[str, E]:
    """What went wrong, by name, in the last of at most `tries` attempts at each; only what died is attempted again.

    attempt: told what is waiting and its own number, from 0; returns what went wrong with which.
    """
    errors: dict[str, E] = {}
    for number in range(tries):
        if not waiting:
            break
        found = attempt(waiting, number)
        for each in waiting:
            errors.pop(name(each), None)
        errors |= found
        waiting = [each for each in waiting if name(each) in found and deadly(found[name(each)])]
    return errors


def _is_death(problem: BaseException) -> bool:
    # Ray's out-of-memory killer ends processes; torch's exception of that name ends none.
    return type(problem).__name__ in _DEATHS and type(problem).__module__.partition(".")[0] == "ray"


def _inside(problem: BaseException | None) -> list[BaseException]:
    if problem is None:
        return []
    wrapped = [
        *(getattr(problem, "worker_failures", None) or {}).values(),
        getattr(problem, "cause", None), getattr(problem, "_failure", None), problem.__cause__,
    ]  # fmt: skip
    inner = [each for each in wrapped if isinstance(each, BaseException) and each is not problem]
    return [problem, *(found for each in inner for found in _inside(each))]
