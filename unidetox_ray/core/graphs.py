"""One step of all models and the sampler, eagerly or as one replayed CUDA graph: the same call either way.

A step of a deep model is some hundred small kernels, and launching them from Python takes longer than running them.
`GraphedStep` captures a whole lock-step once (every model on its stream, mixture, sampling; the rows' lengths advance
on the device) and replays it. A graph has fixed shapes, so there is one per number of rows and per bucket of the
longest row; kernels that read only the valid part of the cache need a single bucket.

Nothing here has run on a GPU yet; on the CPU the books are tested with a recorder that stands in for the capture.
UNIDETOX_CUDA_GRAPHS=0 switches graphs off. Letters: B rows, n steps of one call.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from unidetox_ray.core import kernels
from unidetox_ray.core.lockstep import LockStep
from unidetox_ray.core.logits import Mixture, Sampling
from unidetox_ray.core.memory import buckets
from unidetox_ray.core.sampling import sample as plain_sample

SWITCH = "UNIDETOX_CUDA_GRAPHS"
log = logging.getLogger(__name__)

Work = Callable[[], None]
#: Records the work without doing it, and returns what does it.
Capture = Callable[[Work], Work]


@runtime_checkable
class Capturable(Protocol):
    """A runner whose step is cut into the device's part and the host's (`core.lean.LeanRunner`)."""

    on_hidden: Callable[[Tensor], Tensor] | None

    def bound(self) -> int: ...
    def compute(self, tokens: Tensor, longest: int) -> Tensor: ...
    def advanced(self) -> None: ...


class EagerStep:
    """Steps all models and draws, one operation at a time."""

    def __init__(self, models: LockStep, mixture: Mixture, sampling: Sampling) -> None:
        """models: opened, or opened before the first call."""
        self.models, self.mixture, self.sampling = models, mixture, sampling
        self._sample: Any = kernels.sample if kernels.why_not(models.device) is None else plain_sample

    @torch.inference_mode()
    def __call__(self, last: Tensor, numbers: Tensor) -> Tensor:
        """n tokens for every row; what follows a NOTHING in a row means nothing.

        last: (B,) int64, the tokens drawn before. numbers: (n, B) float64 in [0, 1), each row's next uniform numbers.
        Both on the models' device. Returns (n, B) int64, a new tensor.
        """
        drawn = []
        for uniform in numbers:
            last = self.draw(self.models.step(_readable(last)), uniform)
            drawn.append(last)
        return torch.stack(drawn)

    def draw(self, logits: Sequence[Tensor], uniform: Tensor) -> Tensor:
        """One token a row: logits (B, V) per model, uniform (B,) float64 -> (B,) int64."""
        tokens: Tensor = self._sample(logits, self.mixture, self.sampling, uniform)
        return tokens


class GraphedStep(EagerStep):
    """The same, from graphs; eager for the first step of each shape, and always where capturing fails.

    It belongs to one `open` of the models, since a graph keeps the addresses of their caches: make a new one after
    the next `open`. `prefill` and `repeat` between calls are fine. An `on_hidden` hook is captured with the rest and
    must neither wait for the device nor depend on anything but its argument; another hook gets graphs of its own.
    """

    def __init__(
        self,
        models: LockStep,
        mixture: Mixture,
        sampling: Sampling,
        *,
        capacity: int,
        capture: Capture | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """capacity: the caches'. capture: how to record (None: a CUDA graph). lengths: the buckets of the longest
        row, rising, the last one at least the capacity (None: chosen by `core.memory.buckets`)."""
        self._runners = [runner for runner in models.runners if isinstance(runner, Capturable)]
        if len(self._runners) < len(models.runners):
            raise TypeError("a model's step cannot be captured; ask why_not_graphed first")
        super().__init__(models, mixture, sampling)
        self.capacity = capacity
        loose = kernels.why_not(models.device) is None
        self.buckets = tuple(lengths or buckets(capacity, only_valid_is_read=loose))
        #: Why steps are eager from now on; None: graphs are in use.
        self.reason: str | None = None
        #: How many graphs there are, and what making them took: the first eager step of each shape and its capture.
        self.captured, self.warmup_seconds = 0, 0.0
        self._capture = capture or _CudaCapture(models.device)
        self._ready: dict[tuple[int, ...], Work] = {}
        self._warm: set[tuple[int, ...]] = set()
        self._hooks: list[Any] = []
        self._tokens = self._numbers = torch.empty(0)

    @torch.inference_mode()
    def __call__(self, last: Tensor, numbers: Tensor) -> Tensor:
        """See `EagerStep`."""
        if self.reason is not None:
            return super().__call__(last, numbers)
        drawn = torch.empty(numbers.shape, dtype=torch.long, device=last.device)
        for index, uniform in enumerate(numbers):
            last = self._one(last, uniform)
            drawn[index] = last
        return drawn

    def _one(self, last: Tensor, uniform: Tensor) -> Tensor:
        if self.reason is not None:
            return self.draw(self.models.step(_readable(last)), uniform)
        rows, longest = last.shape[0], self.bucket()
        if self._tokens.shape[0] != rows:
            # The graphs so far read and write buffers of another size.
            self._tokens, self._numbers = torch.zeros_like(last), torch.zeros_like(uniform)
            self._ready.clear()
        if last is not self._tokens:
            self._tokens.copy_(last)
        self._numbers.copy_(uniform)
        key = (rows, longest, *self._hook_numbers())
        work = self._ready.get(key)
        if work is not None:
            work()
        elif key not in self._warm:
            # A real step: it compiles the kernels and makes the libraries' workspaces, which no capture may do.
            self._timed(lambda: self._work(longest))
            self._warm.add(key)
        else:
            work = self._captured_work(longest)
            if work is None:
                return self.draw(self.models.step(_readable(last)), uniform)
            self._ready[key] = work
            work()
        for runner in self._runners:
            runner.advanced()
        return self._tokens

    def bucket(self) -> int:
        """The bucket of the next step: the smallest that holds every model's longest row."""
        needed = max(runner.bound() for runner in self._runners)
        return next((size for size in self.buckets if size >= needed), self.buckets[-1])

    def _work(self, longest: int) -> None:
        """The device's part of a step, from the static inputs to the static output."""
        tokens = _readable(self._tokens)
        logits = self.models.each(lambda runner: cast(Capturable, runner).compute(tokens, longest))
        self._tokens.copy_(self.draw(logits, self._numbers))

    def _captured_work(self, longest: int) -> Work | None:
        found: list[Work] = []
        try:
            self._timed(lambda: found.append(self._capture(lambda: self._work(longest))))
        except Exception as error:  # whatever the reason, the eager step does the same
            self.reason = f"capturing a step failed: {type(error).__name__}: {' '.join(str(error).split())}"
            log.warning("decoding continues without CUDA graphs: %s", self.reason)
            self._ready.clear()
            return None
        self.captured += 1
        return found[0]

    def _timed(self, call: Callable[[], Any]) -> None:
        wait = torch.cuda.synchronize if self.models.device.type == "cuda" else lambda: None
        wait()
        start = time.perf_counter()
        call()
        wait()
        self.warmup_seconds += time.perf_counter() - start

    def _hook_numbers(self) -> list[int]:
        numbers = []
        for runner in self._runners:
            hook = runner.on_hidden
            known = [number for number, other in enumerate(self._hooks) if other == hook]
            if not known:
                self._hooks.append(hook)
                known = [len(self._hooks) - 1]
            numbers.append(known[0])
        return numbers


class _CudaCapture:
    """Records into CUDA graphs that share one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, work: Work) -> Work:
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
            graph = torch.cuda.CUDAGraph()
            # Other threads (Ray's, a tracker's) may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        replay: Work = graph.replay
        return replay


def _readable(tokens: Tensor) -> Tensor:
    """A row that drew NOTHING reads token 0: an index outside the embedding ends a GPU's process."""
    return tokens.clamp(min=0)


def why_not_graphed(models: LockStep, mixture: Mixture, sampling: Sampling) -> str | None:
    """Why steps of these models cannot, or shall not, be captured; None: they can."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"switched off by {SWITCH}=0"
    if models.device.type != "cuda":
        return f"graphs are for CUDA devices, the models lie on {models.device.type}"
    for runner in models.runners:
        if not isinstance(runner, Capturable):
            return f"{type(runner).__name__} does not part its step into the device's work and the host's"
    no_kernel = kernels.why_not(models.device)
    cuts = sampling.top_p < 1.0 or (mixture.nucleus is not None and mixture.nucleus < 1.0)
    if cuts and (no_kernel or mixture.dtype != torch.float32 or len(models.runners) > 3):
        return f"the plain top-p waits for the device ({no_kernel or 'the kernel does not do this mixture'})"
    return None


def step_for(
    models: LockStep, mixture: Mixture, sampling: Sampling, *, capacity: int, enabled: bool = True
) -> EagerStep:
    """What the decode loop calls for its next tokens: graphs where they work, eager steps elsewhere.

    capacity: positions of the models' caches. enabled: False asks for eager steps.
    """
    if enabled and why_not_graphed(models, mixture, sampling) is None:
        return GraphedStep(models, mixture, sampling, capacity=capacity)
    return EagerStep(models, mixture, sampling)
