"""Compiling a model block by block, in place, with a way back.

A model's blocks are one class with other weights, so that what is compiled for the first serves all: warm-up stays in
seconds (GPT-2 XL on an H200: 11 s a block-wise, 102 s a whole model; shared/reference/performance.md) where compiling
everything takes longer than the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import nn

T = TypeVar("T")
Compile = Literal["auto", "blocks", "off"]
logger = logging.getLogger(__name__)

#: Variants of one block that are compiled before torch gives up: families and precisions share a process.
_VARIANTS = 64


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The decoder's blocks: the longest ModuleList whose elements are of one class; [] where there is none."""
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len({type(element) for element in module}) == 1
    ]
    return max(lists, key=len, default=[])


def wanted(how: Compile, device: torch.device) -> bool:
    """auto: on CUDA alone. A CPU spends more on compiling than a short training lasts, and may lack a C++ compiler."""
    return how == "blocks" or (how == "auto" and device.type == "cuda")


class CompiledBlocks:
    """`model`'s blocks compiled in place: same modules, same names in the state dict. No blocks: does nothing.

    Widths of batches become symbols at the second one seen, so that each width is not compiled anew. A compiler
    reports what it cannot do in many ways and only when a block first runs, forwards or backwards; so `run` does the
    work again without it when anything fails, and what fails then as well was not the compiler's fault.

    backend: of torch.compile. "eager" and "aot_eager" need no compiler on the machine.
    """

    def __init__(self, model: nn.Module, backend: str | Callable[..., object] = "inductor") -> None:
        self.blocks = blocks_of(model)
        self.active = bool(self.blocks)
        self._proven = False
        if self.active:  # only then: naming it imports the compiler
            limit: Any = torch._dynamo.config
            limit.recompile_limit = max(limit.recompile_limit, _VARIANTS)
        for block in self.blocks:
            block.compile(backend=backend)

    def run(self, work: Callable[[], T], undo: Callable[[], None] = lambda: None) -> T:
        """work(), and once more in eager mode if the first attempt fails. undo: what it may have left half done."""
        if not self.active:
            return work()
        devices = [] if self._proven or not torch.cuda.is_available() else [torch.cuda.current_device()]
        # Until it has worked once: dropout of the second attempt is that of an eager training.
        before = (
            None if self._proven else (torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in devices])
        )
        try:
            result = work()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # see the class: whatever a compiler raises
            self.drop(error)
            undo()
            if before is not None:
                torch.set_rng_state(before[0])
                for device, state in zip(devices, before[1], strict=True):
                    torch.cuda.set_rng_state(state, device)
            return work()
        self._proven = True
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Eager within the block: evaluations bring shapes and caches that would each be compiled for one use."""
        kept = [block._compiled_call_impl for block in self.blocks]
        for block in self.blocks:
            block._compiled_call_impl = None
        try:
            yield
        finally:
            for block, compiled in zip(self.blocks, kept, strict=True):
                block._compiled_call_impl = compiled

    def drop(self, error: BaseException | None = None) -> None:
        """Back to eager blocks; the reason is logged."""
        if error is not None and self.active:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            logger.warning("blocks are not compiled: %s: %s", type(error).__name__, " ".join(lines[:2])[:200])
        for block in self.blocks:
            block._compiled_call_impl = None
        self.active = False
