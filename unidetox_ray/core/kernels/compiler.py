"""Triton where it is installed, and stand-ins where it is not, so that every kernel file can be imported anywhere.

Triton decides when a kernel is defined whether it will be compiled for the GPU or interpreted on the CPU: set
TRITON_INTERPRET=1 before the first import of triton for the latter. Nothing in this package has been run on a GPU
yet: the kernels were run in the interpreter and compiled for sm_80 and sm_90.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

SWITCH = "UNIDETOX_TRITON"

triton: Any
tl: Any
missing: str | None = None  #: why there is no Triton
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1" or os.environ.get(SWITCH) == "1":
    try:
        import triton  # type: ignore[no-redef]
        import triton.language as tl  # type: ignore[no-redef]
    except ImportError as error:
        triton, tl, missing = None, None, f"triton cannot be imported ({error})"
else:
    # Importing it takes every process of a run a second of work, for nothing.
    triton, tl, missing = None, None, "there is no CUDA device"


class _Absent:
    """What a kernel is where there is no Triton."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, _grid: Any) -> Callable[..., NoReturn]:
        def launch(*_arguments: Any, **_named: Any) -> NoReturn:
            raise RuntimeError(f"kernel {self.name} cannot run: {missing}")

        return launch


def jit(function: Any = None, **options: Any) -> Any:
    """`triton.jit`, with the same options; without Triton something that raises RuntimeError when it is launched."""
    if function is None:
        return lambda later: jit(later, **options)
    return triton.jit(function, **options) if triton is not None else _Absent(function.__name__)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def why_not(device: torch.device) -> str | None:
    """Why the kernels are not used for tensors on `device`; None: they are. UNIDETOX_TRITON=0 switches them off."""
    if device.type != "cuda":
        return f"the kernels are for CUDA devices, the tensors lie on {device.type}"
    if os.environ.get(SWITCH, "1") == "0":
        return f"switched off by {SWITCH}=0"
    if missing is not None:
        return missing
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels need compute capability 8.0 (Ampere) or newer"
    return None


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is at least `number` and at least `least`."""
    return max(least, 1 << max(0, number - 1).bit_length())


@functools.cache
def processors(device: torch.device) -> int:
    """How many multiprocessors the device has; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
