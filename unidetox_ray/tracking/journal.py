"""What is to be recorded while the store does not answer: kept in order, and recorded when it does again.

A run is days of work and its numbers lie in the run folder as well, so a tracking server that is away for a while must not end
it. Every call that is kept here can be made twice: `Tracker` finds its runs again and records the same values.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from unidetox_ray.errors import TrackingError

#: Seconds until a store that did not answer is asked again: each attempt costs MLflow's own retries.
PAUSE = 20.0


class Journal:
    """Calls that record something, made in their order, at once where the store answers.

    say: shows one line to the user; called when the store stops answering and when it is back.
    """

    def __init__(
        self, say: Callable[[str], None], *, pause: float = PAUSE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._pause, self._clock = say, pause, clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._not_before = -float("inf")
        self._away = False

    def __len__(self) -> int:
        """How many calls wait."""
        return len(self._waiting)

    def do(self, call: Callable[[], None]) -> None:
        """Make the call, after those that wait; keep it where the store does not answer."""
        self._waiting.append(call)
        if self._clock() >= self._not_before:
            self._make_calls()

    def finish(self, patience: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Make all calls that wait, asking again for `patience` seconds; TrackingError when the store stays away."""
        until = self._clock() + patience
        while True:
            problem = self._make_calls()
            if problem is None:
                return
            if self._clock() >= until:
                raise TrackingError(
                    f"{problem}; all results are in the run folder: the same command again records them"
                ) from problem
            sleep(min(self._pause, max(0.0, until - self._clock())))

    def _make_calls(self) -> TrackingError | None:
        while self._waiting:
            try:
                self._waiting[0]()
            except TrackingError as problem:
                self._not_before = self._clock() + self._pause
                if not self._away:
                    self._say(f"{problem}; the run goes on and records it when the store is back")
                self._away = True
                return problem
            self._waiting.popleft()
        if self._away:
            self._say("the MLflow store is back; everything so far is recorded")
        self._away = False
        return None
