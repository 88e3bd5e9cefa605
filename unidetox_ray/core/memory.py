"""How many rows fit into the device's memory, and what to do when they did not.

The cache dominates: GPT-2 XL keeps 307,200 bytes a position in bfloat16, so two of them at 640 rows of 256 positions
hold 94 GiB. What a step and a prompt need besides is estimated from the models' shapes, generously.

Letters: B rows, V vocabulary, D head size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from unidetox_ray.container import machine_memory
from unidetox_ray.core import kernels
from unidetox_ray.core.batching import out_of_memory, release_memory
from unidetox_ray.core.decoder import Decoder
from unidetox_ray.errors import ModelError

T = TypeVar("T")

#: A cache's room is a multiple of this, as in `core.lean_ops`.
_GRAIN = 16
#: Prompts are read in pieces of so many positions (`core.lean_ops`).
_PIECE = 16384
#: Share of the free memory that is planned with; the rest is fragmentation, workspaces and graphs.
_SHARE = 0.9
#: More rows than this gain nothing: the matrix products are bound by arithmetic by then.
_MOST_ROWS = 1024
#: Rows where memory does not decide.
_ROWS = 256
#: Matrix products like row counts that are multiples of this.
_ROW_GRAIN = 8
#: Bytes per entry of (B, V) that the plain sampler holds at its peak (float32 scores, probabilities, a sorted copy, its
#: indices), and the fused one.
_PLAIN_SAMPLER, _FUSED_SAMPLER = 32, 0


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory. widest: feed-forward width. itemsize: bytes of an element."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    widest: int
    vocab: int
    itemsize: int

    @property
    def position_bytes(self) -> int:
        """Keys and values of one position in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.itemsize

    @property
    def work_bytes(self) -> int:
        """Activations of one position under way: residual stream, norms, projections, feed-forward."""
        projections = (2 * self.heads + 2 * self.kv_heads) * self.head_size
        return (4 * self.hidden + projections + 2 * self.widest) * self.itemsize


def shape_of(decoder: Decoder) -> Shape:
    """The shape of a lean decoder."""
    return Shape(
        layers=len(decoder.blocks),
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        head_size=decoder.head_size,
        hidden=decoder.hidden,
        widest=max((block.up.rows for block in decoder.blocks), default=0),
        vocab=decoder.vocab,
        itemsize=decoder.dtype.itemsize,
    )


def row_bytes(shapes: Sequence[Shape], capacity: int, *, fused: bool) -> int:
    """Bytes that one more row costs in all models together.

    capacity: positions of a row. fused: the sampler is the kernel, which has no intermediate of size V.
    """
    room = -(-capacity // _GRAIN) * _GRAIN
    total = 0
    for shape in shapes:
        cache = shape.position_bytes * room + shape.layers * shape.heads * shape.head_size * shape.itemsize
        copied = (
            shape.position_bytes * room // max(1, shape.layers)
        )  # one layer is copied when prompts are shared
        total += cache + copied + shape.work_bytes + shape.vocab * shape.itemsize
    return total + shapes[0].vocab * (_FUSED_SAMPLER if fused else _PLAIN_SAMPLER)


def prompt_bytes(shapes: Sequence[Shape], rows: int, prompt: int) -> int:
    """Bytes while prompts are read: rows of at most `prompt` ids each, in pieces, in all models at once."""
    padded = -(-prompt // _GRAIN) * _GRAIN
    positions = min(max(_PIECE, padded), rows * padded)
    return sum(shape.work_bytes * positions for shape in shapes)


def peak_bytes(
    shapes: Sequence[Shape], rows: int, capacity: int, *, prompt: int, fused: bool, weights: int = 0
) -> int:
    """The estimated peak. weights: bytes of the models themselves."""
    return weights + rows * row_bytes(shapes, capacity, fused=fused) + prompt_bytes(shapes, rows, prompt)


def rows_that_fit(
    free: int,
    shapes: Sequence[Shape],
    capacity: int,
    wanted: int,
    *,
    prompt: int,
    fused: bool,
    most: int = _MOST_ROWS,
) -> int:
    """Rows of the batch: as many as fit, evened out over the batches that `wanted` sequences then need.

    free: bytes, the models' weights already taken off. capacity: positions of a row, prompt and new tokens together.
    wanted: sequences of the job, >= 1. prompt: the longest prompt. most: an upper limit for speed's sake.
    Returns 1..min(wanted, most); 640 sequences of which 500 fit are decoded as 320 and 320. ModelError: not one fits.
    """
    budget = int(free * _SHARE) - prompt_bytes(shapes, wanted, prompt)
    each = row_bytes(shapes, capacity, fused=fused)
    fit = min(budget // each, wanted, most)
    if fit < 1:
        # Reading one prompt at a time needs less than was set aside above.
        if int(free * _SHARE) < each + prompt_bytes(shapes, 1, prompt):
            raise ModelError(
                f"decoding {capacity} positions needs {_gib(each + prompt_bytes(shapes, 1, prompt))} a row, of "
                f"{_gib(free)} free {_gib(int(free * _SHARE))} may be used; shorten the texts or use a smaller model"
            )
        return 1
    batches = -(-wanted // fit)
    even = -(-wanted // batches)
    rounded = -(-even // _ROW_GRAIN) * _ROW_GRAIN
    return rounded if rounded <= min(fit, wanted) else even


def chosen_rows(runners: Sequence[Any], capacity: int, wanted: int, *, prompt: int) -> int:
    """Rows of the batch where nobody says how many, 1..wanted; arguments as in `rows_that_fit`.

    runners: on one device. On CUDA as many as the free memory carries; on the CPU, and for runners that do not know
    their shape, a number that is fast (measured at 16 to 512 rows) and small.
    """
    device: torch.device = runners[0].device
    runners = [part for runner in runners for part in getattr(runner, "parts", (runner,))]
    if device.type != "cuda" or not all(hasattr(runner, "shape") for runner in runners):
        return min(_ROWS, wanted)
    fused = kernels.why_not(device) is None
    for runner in runners:
        runner.empty()  # caches of the job before are let go by `open` in any case
    shapes = [runner.shape() for runner in runners]
    return rows_that_fit(free_bytes(device), shapes, capacity, wanted, prompt=prompt, fused=fused)


def buckets(capacity: int, *, only_valid_is_read: bool, most: int = 8) -> tuple[int, ...]:
    """Bounds of the longest row for which a step is captured, rising, multiples of 16; the last holds the capacity.

    only_valid_is_read: attention stops at a row's own length whatever the bound, so that one bucket does; otherwise
    at most `most` equal steps, which read 1 / (2 most) of the capacity too much on average.
    """
    room = -(-capacity // _GRAIN) * _GRAIN
    if only_valid_is_read:
        return (room,)
    width = -(-room // most // _GRAIN) * _GRAIN
    return (*range(width, room, width), room)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated there.

    On CUDA what the driver has and what torch holds without using it. On the CPU the greater of the pages without
    any content and a quarter of the machine's (or its container's) memory, since the rest of it is mostly file cache.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    whole = machine_memory()
    return max(min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"), whole), whole // 4)


def with_fewer_rows(function: Callable[[int], T], rows: int) -> tuple[T, int]:
    """Call `function(rows)`, with half the rows each time memory runs out.

    function: starts over at each call, and gives the same whatever the number of rows (`core.decode.decode`).
    rows: >= 1. Returns the result and the rows it took. When not even one row fits, the last error is raised; every
    other error at once.
    """
    while True:
        try:
            return function(rows), rows
        except (RuntimeError, MemoryError) as error:
            if rows <= 1 or not out_of_memory(error):
                raise
        # Behind the except clause: the error held the frames, and they the tensors.
        rows //= 2
        release_memory()


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
