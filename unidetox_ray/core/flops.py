"""How much arithmetic a training step is, what the device can do, and how fast the steps were.

Model FLOPs utilisation (MFU; Chowdhery et al. 2022, appendix B) = operations the model needs / time / peak. Needs count
the weights' products alone (Kaplan et al. 2020, section 2.1): attention's own products, at most T / (6 H) more, and padding
are left out, so that a number here is on the low side.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

_PEAKS: dict[tuple[str, torch.dtype, int], float] = {}


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights, a shared one counted once. trainable <= total."""

    total: int
    trainable: int


def parameters_of(model: nn.Module) -> Parameters:
    """Of the whole model, before anything shards it."""
    weights = list(model.parameters())
    return Parameters(
        sum(weight.numel() for weight in weights),
        sum(weight.numel() for weight in weights if weight.requires_grad),
    )


def training_flops(parameters: Parameters, tokens: int) -> float:
    """Operations of forward and backward over `tokens` tokens: (4 total + 2 trainable) x tokens.

    A weight is multiplied and added once a token forwards (2), once backwards to carry the gradient on to the layer
    before (2), and once more for its own gradient if it is trained (2). All trained: 6 x total x tokens (Kaplan et al. 2020,
    equation 2.2). With low-rank adapters 4 of the 6 remain, since the frozen weights still carry gradients to the adapters
    below them; those below the lowest adapter do not, which is left out.
    """
    return (4.0 * parameters.total + 2.0 * parameters.trainable) * tokens


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product in that dtype, with the threads of now; once per process.

    8192 wide on CUDA, where an H200 reaches 792e12 in bfloat16; 1024 on a CPU. The best of three after one unmeasured.
    """
    key = (str(device), dtype, torch.get_num_threads())
    if key not in _PEAKS:
        size = 8192 if device.type == "cuda" else 1024
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = []
        with torch.no_grad():
            for _ in range(4):
                _wait(device)
                started = time.perf_counter()
                torch.mm(a, b)
                _wait(device)
                seconds.append(time.perf_counter() - started)
        _PEAKS[key] = 2.0 * size**3 / min(seconds[1:])
    return _PEAKS[key]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


#: At most this many steps count as warm-up: compilation, first allocations, second widths.
WARM_STEPS = 5


@dataclass
class Pace:
    """Times of steps. `start` behind a pause, `mark` behind each step; on CUDA both only enqueue an event, and nothing waits.

    seconds: of each step, from the end of the one before, making its batch included. tokens: real ones of each step.
    """

    device: torch.device
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    _marks: list[Any] = field(default_factory=list)

    def start(self) -> None:
        self._marks = [self._now()]

    def mark(self, tokens: int) -> None:
        self._marks.append(self._now())
        self.tokens.append(tokens)

    def read(self) -> None:
        """Turn marks into seconds. Called where the loop reads its losses, which has waited for the device already."""
        marks, self._marks = self._marks, self._marks[-1:]
        if self.device.type == "cuda" and len(marks) > 1:
            marks[-1].synchronize()
            self.seconds += [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
        else:
            self.seconds += [b - a for a, b in pairwise(marks)]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@dataclass(frozen=True)
class Speed:
    """step_ms: median without warm-up steps. warmup_seconds: what the first steps took beyond that.

    tokens_per_second: real tokens of the other steps over their time. mfu: share of `peak_tflops`, all workers' together.
    """

    step_ms: float
    warmup_seconds: float
    tokens_per_second: float
    mfu: float
    peak_tflops: float
    parameters: int
    trainable_parameters: int

    def as_dict(self) -> dict[str, float]:
        """Rounded to what a repetition reproduces."""
        return {
            name: float(f"{value:.5g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def speed_of(
    seconds: Sequence[float], tokens: Sequence[int], parameters: Parameters, peak: float, devices: int = 1
) -> Speed | None:
    """Of the steps measured in one process; None where there was none. peak: operations a second of one device."""
    if not seconds:
        return None
    warm = min(WARM_STEPS, len(seconds) // 2)
    steady, counted = seconds[warm:], sum(tokens[warm:])
    median = statistics.median(steady)
    total = max(sum(steady), 1e-9)
    return Speed(
        step_ms=1e3 * median,
        warmup_seconds=max(0.0, sum(seconds[:warm]) - warm * median),
        tokens_per_second=counted / total,
        mfu=training_flops(parameters, counted) / total / (peak * devices),
        peak_tflops=peak / 1e12,
        parameters=parameters.total,
        trainable_parameters=parameters.trainable,
    )
