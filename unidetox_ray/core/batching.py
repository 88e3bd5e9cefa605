"""Work in batches: sorted by length, within a budget of tokens, smaller when memory is short, bisected on failure."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: What a model's forward may raise for one bad row: such a batch is bisected down to that row.
FAILURES = (RuntimeError, ValueError, IndexError, MemoryError)

#: float32 values of a layer's widest activation (4 H a token) that a CPU's caches hold: beyond, memory sets the pace.
CPU_VALUES = 2**21
#: Fewer tokens than this leave the matrix products too few rows.
CPU_LEAST = 256

#: What allocators say when memory is short, in lower case.
_SHORT_OF_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "defaultcpuallocator", "not enough memory", "out of memory",
    "bad alloc",
)  # fmt: skip

T = TypeVar("T")


def cpu_budget(token_budget: int, hidden: int) -> int:
    """The token budget for a model of that width on a CPU, where larger batches are slower: at most `token_budget`."""
    return min(token_budget, max(CPU_LEAST, CPU_VALUES // (4 * max(1, hidden))))


def budgeted_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of rows, longest first, in batches whose padded size (rows x longest) stays within `budget` tokens.

    A row longer than the budget is a batch of its own. Longest first: memory that suffices once suffices to the end.
    """
    order = _longest_first(lengths)
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def in_batches(
    items: Sequence[T],
    lengths: Sequence[int],
    budget: int,
    work: Callable[[list[T]], None],
    failed: Callable[[T, Exception], None],
) -> None:
    """`work` on every item once, in the batches of `budgeted_batches`.

    Out of memory: the batch is done again in halves, and the budget stays halved from then on; numbers do not depend
    on it. Any other of FAILURES: the batch is bisected and what fails alone goes to `failed`, which may raise.
    `work` must be repeatable: items of a failed batch come again.
    """
    order = _longest_first(lengths)
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, lengths[order[start]]))
        batch = order[start : start + rows]
        error = attempt(work, [items[row] for row in batch])
        if error is None:
            start += rows
        elif len(batch) == 1:
            failed(items[batch[0]], error)
            start += 1
        elif out_of_memory(error):
            # Half of what this batch came to, which may be far less than half of the budget.
            budget = max(1, (len(batch) // 2) * max(1, lengths[batch[0]]))
            error = None
            release_memory()
        else:
            error = None
            _bisect([items[row] for row in batch], work, failed)
            start += rows


def shares_of(lengths: Sequence[int], threads: int) -> list[list[int]]:
    """Row indices dealt out to at most `threads` workers by length, so that each gets about as many tokens."""
    order = _longest_first(lengths)
    return [order[worker::threads] for worker in range(min(threads, len(order)))]


def side_by_side(jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs at once, each on a thread of its own with one arithmetic thread.

    For small batches on a CPU: nobody waits for the others after every operation. The first error is raised once
    all have ended.
    """
    import torch

    if len(jobs) < 2:
        for job in jobs:
            job()
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(len(jobs), "batch", torch.set_num_threads, (1,)) as pool:
            waiting = [pool.submit(job) for job in jobs]
    finally:
        # Part of that setting belongs to the process, not to the thread.
        torch.set_num_threads(threads)
    for future in waiting:
        future.result()


def attempt(work: Callable[[list[T]], None], items: list[T]) -> Exception | None:
    """None, or the failure, without the frames that would keep its tensors alive."""
    try:
        work(items)
    except FAILURES as error:
        if device_lost(error):
            raise
        return error.with_traceback(None)
    return None


def _bisect(items: list[T], work: Callable[[list[T]], None], failed: Callable[[T, Exception], None]) -> None:
    middle = len(items) // 2
    for half in (items[:middle], items[middle:]):
        error = attempt(work, half)
        if error is None:
            continue
        if len(half) == 1:
            failed(half[0], error)
        else:
            _bisect(half, work, failed)


def out_of_memory(error: BaseException) -> bool:
    """Whether a failure says that memory ran out, on either kind of device."""
    # Here and not above: what only plans batches, such as a report, needs no torch.
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator has no exception of its own.
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _SHORT_OF_MEMORY)


def device_lost(error: BaseException) -> bool:
    """Whether a failure leaves the accelerator unusable for the rest of the process, such as a device-side assert.

    Every later call would fail too, whatever its rows: to blame rows for that would lose good ones. Only a new process helps.
    """
    import torch

    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)


def release_memory() -> None:
    """Give what nobody holds any more back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """One line of at most 300 characters for a row's error column."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
