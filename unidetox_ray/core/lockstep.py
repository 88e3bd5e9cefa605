"""Several runners that do the same thing at once: a base model and its toxic copy, say.

The models are independent until the sampling. On the CPU each gets a thread of its own and its share of the
arithmetic threads, when there are enough; on CUDA each gets a stream. Otherwise they take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from unidetox_ray.core.runner import Runner

T = TypeVar("T")


class LockStep:
    """A context within which calls go to all runners at once; same vocabulary, same device.

    threads: whether CPU models may run on threads of their own. The results are the same either way as long as a
    runner's arithmetic does not depend on its number of threads.
    """

    def __init__(self, runners: Sequence[Runner], *, threads: bool = True) -> None:
        if not runners:
            raise ValueError("no model to decode with")
        sizes, devices = {runner.vocab for runner in runners}, {runner.device for runner in runners}
        if len(sizes) > 1:
            raise ValueError(f"the models' vocabularies differ in size: {sorted(sizes)}")
        if len(devices) > 1:
            raise ValueError(f"the models lie on different devices: {sorted(map(str, devices))}")
        self.runners = list(runners)
        self.device = runners[0].device
        self.refills = all(runner.refills for runner in runners)
        self.shrinks = all(runner.shrinks for runner in runners)
        # The same object twice has one cache and one set of rows: it must be two runners.
        if len({id(runner) for runner in runners}) < len(runners):
            raise ValueError("one runner stands twice in the list; give each model a runner of its own")
        self._share = torch.get_num_threads() // len(runners) if threads and len(runners) > 1 else 0
        self._pool: ThreadPoolExecutor | None = None
        self._streams: list[Any] = []

    def __enter__(self) -> LockStep:
        if self.device.type == "cuda" and len(self.runners) > 1:
            self._streams = [torch.cuda.Stream(self.device) for _ in self.runners]  # type: ignore[no-untyped-call]
        elif self.device.type == "cpu" and self._share >= 1:
            self._whole = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(
                len(self.runners), "model", initializer=torch.set_num_threads, initargs=(self._share,)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            torch.set_num_threads(
                self._whole
            )  # part of that setting belongs to the process, not to the thread
        self._streams = []

    def each(self, call: Callable[[Runner], T]) -> list[T]:
        """What `call` returns for each runner, in their order. The first error is raised once all have ended."""
        if self._pool is not None:
            # Wait for all: a thread that still writes its cache must not outlive this call.
            waiting = [self._pool.submit(_without_gradients, call, runner) for runner in self.runners]
            failed = [future.exception() for future in waiting]
            for error in failed:
                if error is not None:
                    raise error
            return [future.result() for future in waiting]
        if self._streams:
            return self._on_streams(call)
        return [_without_gradients(call, runner) for runner in self.runners]

    def _on_streams(self, call: Callable[[Runner], T]) -> list[T]:
        here = torch.cuda.current_stream(self.device)
        results = []
        for runner, stream in zip(self.runners, self._streams, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                result = _without_gradients(call, runner)
            if isinstance(result, Tensor):
                result.record_stream(here)
            results.append(result)
        for stream in self._streams:
            here.wait_stream(stream)
        return results

    def open(self, rows: int, capacity: int) -> None:
        self.each(lambda runner: runner.open(rows, capacity))

    def prefill(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> list[Tensor]:
        return self.each(lambda runner: runner.prefill(ids, lengths, rows))

    def repeat(self, source: Tensor, target: Tensor) -> None:
        self.each(lambda runner: runner.repeat(source, target))

    def step(self, tokens: Tensor) -> list[Tensor]:
        return self.each(lambda runner: runner.step(tokens))

    def keep(self, rows: Tensor) -> None:
        self.each(lambda runner: runner.keep(rows))


def _without_gradients(call: Callable[[Runner], T], runner: Runner) -> T:
    with torch.inference_mode():  # a mode of the thread, so each thread enters it
        return call(runner)
