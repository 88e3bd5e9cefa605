"""Which rows of an order that kills its worker are lost, and how often anything is tried. The pass is a function here."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from unidetox_ray.errors import StageError
from unidetox_ray.stages.deaths import tried_again
from unidetox_ray.stages.recovery import Recovery


class Numbers:
    """Orders are ranges of numbers; a row is a number and what became of it."""

    @staticmethod
    def split(order):
        half = order["rows"] // 2
        if half == 0:
            return []
        first, rows = order["first"], order["rows"]
        return [
            {"id": f"{order['id']}.0", "first": first, "rows": half},
            {"id": f"{order['id']}.1", "first": first + half, "rows": rows - half},
        ]

    @staticmethod
    def failed(order, settings, reason):
        return table(order, reason)


def table(order, error=None):
    numbers = range(order["first"], order["first"] + order["rows"])
    return pl.DataFrame(
        {"number": list(numbers), "error": [error] * order["rows"]},
        schema={"number": pl.Int64, "error": pl.String},
    )


class Pass:
    """One pass over a pool: orders that hold a poisonous number leave no part, and the first deaths are bad luck."""

    def __init__(self, parts: Path, poison=(), unlucky=0):
        self.parts, self.poison, self.unlucky, self.given = parts, set(poison), unlucky, []

    def __call__(self, orders):
        assert orders, "a pass over nothing"
        self.given.append([order["id"] for order in orders])
        for order in orders:
            if self.unlucky:
                self.unlucky -= 1
            elif not self.poison & set(range(order["first"], order["first"] + order["rows"])):
                table(order).write_parquet(self.parts / f"{order['id']}.parquet")


ORDERS = [{"id": f"order-{n}", "first": 10 * n, "rows": 10} for n in range(4)]


def recovered(tmp_path, poison=(), unlucky=0, tries=2, worker=Numbers):
    attempt, said = Pass(tmp_path, poison, unlucky), []
    Recovery(tmp_path, attempt, worker, {}, tries, said.append).run(ORDERS)
    found = pl.concat([pl.read_parquet(tmp_path / f"{order['id']}.parquet") for order in ORDERS])
    assert found["number"].to_list() == list(range(40))
    assert len(list(tmp_path.iterdir())) == len(ORDERS), "pieces are left"
    return found.filter(pl.col("error").is_not_null())["number"].to_list(), attempt.given, said


def test_bad_luck_costs_nothing(tmp_path):
    assert recovered(tmp_path, unlucky=1) == ([], [[f"order-{n}" for n in range(4)], ["order-0"]], [])


@pytest.mark.parametrize("poison", [[0], [17], [39], [3, 8], [5, 21, 29]])
def test_only_what_kills_is_lost(tmp_path, poison):
    lost, given, said = recovered(tmp_path, poison)
    assert lost == poison and len(said) == 1
    # Two tries of the whole, then two of every level.
    assert len(given) <= 2 + 2 * 4


def test_a_model_that_kills_always_is_given_up_soon(tmp_path):
    lost, given, _ = recovered(tmp_path, range(10, 20))
    assert lost == list(range(10, 20)) and len(given) == 2 + 2 * 2


def test_workers_that_always_die_are_one_error(tmp_path):
    with pytest.raises(StageError, match="every worker died before it had finished one order, 2 times over"):
        recovered(tmp_path, range(40))


def test_orders_that_cannot_be_halved_are_one_error(tmp_path):
    with pytest.raises(StageError, match=r"1 of 4 orders \(order-1 first\) killed their worker 3 times"):
        recovered(tmp_path, [10], tries=3, worker=object)


def test_what_died_is_tried_again_and_what_failed_is_not():
    asked = []

    def attempt(waiting, number):
        asked.append(list(waiting))
        outcomes = {
            "dies once": ["dead", None],
            "dies": ["dead", "dead"],
            "fails": ["broken"],
            "is fine": [None],
        }
        return {name: outcomes[name][number] for name in waiting if outcomes[name][number]}

    errors = tried_again(
        ["dies once", "dies", "fails", "is fine"], 2, str, attempt, lambda error: error == "dead"
    )
    assert asked == [["dies once", "dies", "fails", "is fine"], ["dies once", "dies"]]
    assert errors == {"dies": "dead", "fails": "broken"}
