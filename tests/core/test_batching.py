"""Batches: every item once, within the budget; out of memory halves them; a failing item is found and stands alone."""

import threading

import pytest
import torch

from unidetox_ray.core.batching import (
    attempt,
    budgeted_batches,
    cpu_budget,
    in_batches,
    out_of_memory,
    reason,
    shares_of,
    side_by_side,
)

LENGTHS = [5, 1, 9, 9, 0, 3, 64, 2, 1, 1]


def collect(budget, capacity=10**9, bad=()):
    """What was done, in which batches, and what failed; `capacity` stands for the memory, in padded tokens."""
    done, batches, failures = [], [], {}

    def work(batch):
        if len(batch) * max(LENGTHS[i] for i in batch) > capacity:
            raise torch.OutOfMemoryError("no memory")
        if set(batch) & set(bad):
            raise IndexError("index out of range\nsecond line")
        batches.append(batch)
        done.extend(batch)

    in_batches(range(10), LENGTHS, budget, work, lambda item, error: failures.update({item: reason(error)}))
    return done, batches, failures


@pytest.mark.parametrize("budget", [1, 10, 64, 10_000])
def test_batches_hold_every_row_once_within_the_budget(budget):
    batches = list(budgeted_batches(LENGTHS, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(10))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(LENGTHS[row] for row in batch) <= budget
    assert collect(budget)[1] == batches


def test_longest_first_and_equal_lengths_together():
    done, _, _ = collect(10_000)
    assert [LENGTHS[row] for row in done] == sorted(LENGTHS, reverse=True)


def test_out_of_memory_halves_for_good():
    done, batches, failures = collect(10_000, capacity=64)
    assert sorted(done) == list(range(10)) and not failures
    assert max(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches) <= 64


def test_one_that_never_fits_fails_alone():
    done, _, failures = collect(10_000, capacity=20)
    assert failures == {6: "OutOfMemoryError: no memory"} and sorted([*done, 6]) == list(range(10))


@pytest.mark.parametrize("bad", [[3], [0, 9], list(range(10))])
def test_a_bad_item_fails_alone(bad):
    done, _, failures = collect(10_000, bad=bad)
    assert sorted(failures) == bad and sorted([*done, *bad]) == list(range(10))
    assert set(failures.values()) == {"IndexError: index out of range"}


def test_what_is_no_failure_of_a_row_is_raised():
    with pytest.raises(KeyError):
        in_batches([1], [1], 8, lambda batch: {}[batch[0]], lambda item, error: None)


def test_memory_errors_are_told_from_others():
    # The CPU's own words, from a real allocation that cannot succeed.
    error = attempt(lambda items: torch.empty(2**60, dtype=torch.uint8) and None, [0])
    assert error is not None and out_of_memory(error)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_cpu_takes_smaller_batches_of_wider_models():
    assert cpu_budget(16384, 768) < cpu_budget(16384, 64) <= 16384
    assert cpu_budget(100, 768) == 100 and cpu_budget(16384, 8192) == 256


@pytest.mark.parametrize("threads", [1, 2, 3, 40])
def test_shares_hold_every_row_once_and_are_about_equal(threads):
    shares = shares_of(LENGTHS, threads)
    assert sorted(row for share in shares for row in share) == list(range(10)) and len(shares) <= threads
    many = [(7 * i) % 60 + 1 for i in range(500)]
    sums = [sum(many[row] for row in share) for share in shares_of(many, min(threads, 4))]
    assert max(sums) - min(sums) <= 60


def test_jobs_side_by_side_end_before_an_error_and_restore_the_threads():
    before, met, done = torch.get_num_threads(), threading.Barrier(2, timeout=20), []

    def good():
        met.wait()  # passes only when both run at once
        done.append(torch.get_num_threads())

    def bad():
        met.wait()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        side_by_side([bad, good])
    assert done == [1] and torch.get_num_threads() == before
