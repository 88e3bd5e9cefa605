"""Rows and buckets from bytes: pure arithmetic, against measured figures; and fewer rows when memory runs out."""

from dataclasses import replace

import pytest
import torch

from unidetox_ray.core.batching import out_of_memory
from unidetox_ray.core.memory import (
    Shape,
    buckets,
    free_bytes,
    peak_bytes,
    row_bytes,
    rows_that_fit,
    with_fewer_rows,
)
from unidetox_ray.errors import ModelError

GIB = 2**30
XL = Shape(layers=48, heads=25, kv_heads=25, head_size=64, hidden=1600, widest=6400, vocab=50257, itemsize=2)
LLAMA = Shape(
    layers=32, heads=32, kv_heads=32, head_size=128, hidden=4096, widest=11008, vocab=32000, itemsize=2
)
TINY = Shape(layers=2, heads=4, kv_heads=1, head_size=8, hidden=32, widest=64, vocab=100, itemsize=4)
PAIR_WEIGHTS = 2 * 1_557_611_200 * 2


def test_the_measured_peak_of_the_gpt2_xl_pair() -> None:
    # Measured on an H200: 307 KB a position and model, 100 GiB peak at 640 rows of 256 positions.
    assert XL.position_bytes == 307_200
    peak = peak_bytes([XL, XL], 640, 256, prompt=1, fused=True, weights=PAIR_WEIGHTS)
    assert 0.97 < peak / (100 * GIB) < 1.06


def test_rows_of_the_gpt2_xl_pair() -> None:
    def rows(card: float, wanted: int) -> int:
        free = int(card * GIB) - PAIR_WEIGHTS
        return rows_that_fit(free, [XL, XL], 256, wanted, prompt=1, fused=True)

    assert rows(139.8, 640) == 640  # H200
    assert rows(79.2, 640) == 320  # A100 80 GB: two even batches instead of a full and a small one
    assert rows(139.8, 30) == 30
    assert rows(139.8, 5000) == 720


def test_what_is_chosen_fits() -> None:
    for free in (3 * GIB, 17 * GIB, 60 * GIB):
        for capacity, prompt in ((60, 40), (2048, 1800)):
            for wanted in (1, 7, 64, 1000, 25_000):
                rows = rows_that_fit(free, [LLAMA], capacity, wanted, prompt=prompt, fused=False)
                assert 1 <= rows <= min(wanted, 1024)
                assert peak_bytes([LLAMA], rows, capacity, prompt=prompt, fused=False) <= free or rows == 1


def test_more_memory_never_means_fewer_rows_in_a_long_job() -> None:
    chosen = [
        rows_that_fit(GIB * gib, [XL], 256, 10**6, prompt=16, fused=True) for gib in (4, 8, 16, 32, 64, 128)
    ]
    assert chosen == sorted(chosen) and chosen[-1] == 1024 and chosen[0] >= 1


def test_one_row_too_many_is_an_error_in_words() -> None:
    with pytest.raises(
        ModelError, match=r"decoding 4096 positions needs 2\.\d\d GiB a row, of 1\.00 GiB free 0\.90 GiB"
    ):
        rows_that_fit(GIB, [LLAMA], 4096, 10, prompt=16, fused=True)


def test_what_a_row_costs() -> None:
    assert (
        row_bytes([TINY], 16, fused=True)
        < row_bytes([TINY], 17, fused=True)
        == row_bytes([TINY], 32, fused=True)
    )
    assert row_bytes([TINY], 16, fused=False) - row_bytes([TINY], 16, fused=True) == 32 * TINY.vocab
    assert row_bytes([TINY, TINY], 16, fused=True) == 2 * row_bytes([TINY], 16, fused=True)
    grouped = replace(LLAMA, kv_heads=8)
    assert 3 < row_bytes([LLAMA], 4096, fused=True) / row_bytes([grouped], 4096, fused=True) < 4


def test_buckets() -> None:
    assert buckets(256, only_valid_is_read=True) == (256,)
    assert buckets(250, only_valid_is_read=True) == (256,)
    assert buckets(256, only_valid_is_read=False) == (32, 64, 96, 128, 160, 192, 224, 256)
    assert buckets(60, only_valid_is_read=False) == (16, 32, 48, 64)
    assert buckets(1, only_valid_is_read=False) == (16,)
    for capacity in range(1, 700, 13):
        found = buckets(capacity, only_valid_is_read=False)
        assert list(found) == sorted(set(found)) and len(found) <= 8 and capacity <= found[-1] < capacity + 16
        assert all(size % 16 == 0 for size in found)


def test_free_memory_of_this_machine() -> None:
    assert free_bytes(torch.device("cpu")) > 64 * 2**20


def test_half_the_rows_until_they_fit() -> None:
    tried = []

    def work(rows: int) -> str:
        tried.append(rows)
        if rows > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return "text"

    assert with_fewer_rows(work, 100) == ("text", 12)
    assert tried == [100, 50, 25, 12]


def test_a_real_failed_allocation_is_recognised() -> None:
    def work(rows: int) -> int:
        return int(torch.empty((rows, 2**60 if rows > 1 else 4), dtype=torch.int8).numel())

    assert with_fewer_rows(work, 2) == (4, 1)


def test_what_did_not_fit_is_let_go_before_the_next_try() -> None:
    alive: list[bool] = []

    class Held:
        count = 0

        def __init__(self) -> None:
            Held.count += 1

        def __del__(self) -> None:
            Held.count -= 1

    def work(rows: int) -> int:
        alive.append(Held.count > 0)
        held = Held()
        if rows > 1:
            raise MemoryError
        return Held.count if held else 0

    assert with_fewer_rows(work, 4) == (1, 1)
    assert alive == [False, False, False]


def test_other_errors_and_the_last_row_are_raised() -> None:
    tried = []

    def work(rows: int) -> None:
        tried.append(rows)
        raise error

    for error in (RuntimeError("shapes do not fit"), ValueError("out of memory")):
        assert not out_of_memory(error)
        with pytest.raises(type(error)):
            with_fewer_rows(work, 8)
    error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        with_fewer_rows(work, 2)
    assert tried == [8, 8, 2, 1]
