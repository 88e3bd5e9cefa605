"""What waits for a tracking store that does not answer."""

from __future__ import annotations

from functools import partial

import pytest

from unidetox_ray.errors import StageError, TrackingError
from unidetox_ray.tracking import Journal


class Store:
    """Takes numbers while it is up, and a clock that only its own sleep moves."""

    def __init__(self) -> None:
        self.up, self.taken, self.asked, self.now = True, [], 0, 0.0
        self.back_at: float | None = None

    def take(self, number: int) -> None:
        self.asked += 1
        if not self.up:
            raise TrackingError("MLflow store http://there: cannot record")
        self.taken.append(number)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.back_at is not None and self.now >= self.back_at:
            self.up = True


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def journal(store, said) -> Journal:
    return Journal(said.append, pause=10.0, clock=lambda: store.now)


def test_calls_are_made_at_once_and_in_order(journal, store, said):
    for number in range(3):
        journal.do(partial(store.take, number))
    assert store.taken == [0, 1, 2] and len(journal) == 0 and said == []


def test_an_outage_loses_nothing_and_keeps_the_order(journal, store, said):
    journal.do(partial(store.take, 0))
    store.up = False
    journal.do(partial(store.take, 1))
    store.up = True
    journal.do(partial(store.take, 2))  # within the pause: the store is not asked
    assert store.taken == [0] and len(journal) == 2
    store.now = 11.0
    journal.do(partial(store.take, 3))
    assert store.taken == [0, 1, 2, 3] and len(journal) == 0
    assert len(said) == 2 and "the run goes on" in said[0] and "is back" in said[1]


def test_the_end_waits_for_the_store(journal, store):
    store.up, store.back_at = False, 25.0
    journal.do(partial(store.take, 7))
    journal.finish(60.0, store.sleep)
    assert store.taken == [7] and store.now == 30.0


def test_a_store_that_stays_away_is_one_error_at_the_end(journal, store):
    store.up = False
    journal.do(partial(store.take, 7))
    with pytest.raises(TrackingError, match="same command again records them"):
        journal.finish(35.0, store.sleep)
    assert store.now == 35.0 and len(journal) == 1


def test_a_defect_is_not_mistaken_for_an_outage(journal):
    def broken() -> None:
        raise StageError("a file is missing")

    with pytest.raises(StageError, match="a file is missing"):
        journal.do(broken)
