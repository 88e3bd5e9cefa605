"""Orders on a real actor pool: one part per order, resumable, in the order asked for, loud when something is wrong."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    ModelError,
    StageError,
    UnidetoxError,
    kind_named,
)
from unidetox_ray.stages.orders import Done, clear_parts, facts_of, fulfil

pytestmark = pytest.mark.ray

ORDERS = [{"id": f"order-{n}", "rows": n % 3 + 1, "value": n} for n in range(7)]


def worker():
    """Defined in here so that it travels to the actors by value."""

    class Counter:
        def __init__(self, settings):
            import os

            self.settings = settings
            with open(settings["log"], "a") as log:
                log.write(f"born {os.getpid()}\n")

        def work(self, order):
            import polars

            with open(self.settings["log"], "a") as log:
                log.write(f"{order['id']}\n")
            if order["value"] == self.settings.get("fails_at"):
                raise ValueError(f"first line\norder {order['id']} has no luck")
            size = order["rows"] - (order["value"] == self.settings.get("short_at"))
            return polars.DataFrame({"order": [order["value"]] * size, "row": list(range(size))})

    return Counter


def test_parts_resume_order_and_progress(ray_session, make_context, tmp_path):
    log = tmp_path / "log"
    settings = {"log": str(log)}
    folder = tmp_path / "work"
    (folder / "parts").mkdir(parents=True)
    expected = pl.DataFrame(
        [(order["value"], row) for order in ORDERS for row in range(order["rows"])],
        schema=["order", "row"],
        orient="row",
    )
    # Two orders were done before; one more file is none of ours.
    for value in (2, 5):
        expected.filter(pl.col("order") == value).write_parquet(folder / "parts" / f"order-{value}.parquet")
    (folder / "parts" / ".order-6.parquet.half").write_text("killed while writing")
    seen = []
    table = fulfil(
        worker(), settings, ORDERS, folder,
        actors=2, context=make_context(), progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert table.equals(expected)
    lines = log.read_text().split("\n")
    assert sorted(line for line in lines if line.startswith("order")) == [
        f"order-{n}" for n in (0, 1, 3, 4, 6)
    ]
    # A quick actor may take everything before the second has a turn; there are never more than asked for.
    assert len([line for line in lines if line.startswith("born")]) <= 2
    total = sum(order["rows"] for order in ORDERS)
    assert seen[-1] == (total, total) and len(seen) == 5
    assert seen == sorted(seen) and seen[0][0] > 3 + 3

    # All done: no actor is born, and the order asked for is the order given.
    backwards = fulfil(worker(), settings, ORDERS[::-1], folder, actors=2, context=make_context())
    assert backwards["order"].to_list() == [o["value"] for o in ORDERS[::-1] for _ in range(o["rows"])]
    assert log.read_text().split("\n") == lines
    clear_parts(folder)
    assert not (folder / "parts").exists()


def test_what_an_order_cost_is_kept_with_its_part_until_the_parts_go(ray_session, make_context, tmp_path):
    class Costly:
        def __init__(self, settings):
            self.price = settings["price"]

        def work(self, order):
            import polars

            table = polars.DataFrame({"order": [order["value"]] * order["rows"]})
            return Done(table, {"price": self.price, "of": order["id"]}) if order["value"] else table

    folder, context = tmp_path / "stage", make_context()
    fulfil(Costly, {"price": 0.25}, ORDERS[:2], folder, actors=1, context=context)
    # Taken up again by a dearer worker: what is done keeps its own price.
    table = fulfil(Costly, {"price": 4.0}, ORDERS[:4], folder, actors=1, context=context)
    assert facts_of(folder, ORDERS[:4]) == {
        "order-0": {},
        "order-1": {"price": 0.25, "of": "order-1"},
        "order-2": {"price": 4.0, "of": "order-2"},
        "order-3": {"price": 4.0, "of": "order-3"},
    }
    assert table.columns == ["order"] and table.height == sum(order["rows"] for order in ORDERS[:4])


def test_a_worker_that_raises_is_one_line_and_what_was_done_stays(ray_session, make_context, tmp_path):
    settings = {"log": str(tmp_path / "log"), "fails_at": 3}
    folder = tmp_path / "broken-stage"
    with pytest.raises(StageError) as caught:
        fulfil(worker(), settings, ORDERS[:4], folder, actors=1, context=make_context())
    message = str(caught.value)
    assert "\n" not in message and message.startswith("broken-stage, order order-3: ValueError: first line")
    assert "order order-3 has no luck" in message and "retry" not in message
    assert caught.value.exit_code == 1
    done = {path.name for path in (folder / "parts").glob("order-*.parquet")}
    assert done and "order-3.parquet" not in done

    settings = {**settings, "fails_at": None}
    assert fulfil(worker(), settings, ORDERS[:4], folder, actors=1, context=make_context()).height == 7
    attempts = (tmp_path / "log").read_text().split("\n")
    assert all(attempts.count(name.removesuffix(".parquet")) == 1 for name in done)


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError, ArtifactError])
def test_a_users_mistake_found_by_a_worker_stays_one(ray_session, make_context, tmp_path, kind):
    class Refusing:
        def __init__(self, settings):
            raise kind("the weights\nare cut short")

        def work(self, order): ...

    with pytest.raises(UnidetoxError) as caught:
        fulfil(Refusing, {}, ORDERS[:1], tmp_path / "stage", actors=1, context=make_context())
    assert type(caught.value) is kind and caught.value.exit_code == 2
    assert str(caught.value) == "stage, order order-0: the weights are cut short"


@pytest.mark.parametrize("retries", [0, 1])
def test_an_order_that_kills_its_worker_is_tried_again_so_often_and_no_more(
    ray_session, make_context, tmp_path, retries
):
    class Dying:
        def __init__(self, settings):
            self.log = settings["log"]

        def work(self, order):
            import os

            with open(self.log, "a") as log:
                log.write("x")
            os._exit(1)

    context = make_context("run", f"cluster.max_restarts={retries}")
    settings = {"log": str(tmp_path / "log")}
    with pytest.raises(StageError) as caught:
        fulfil(Dying, settings, ORDERS[:1], tmp_path / "stage", actors=1, context=context)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("stage: ")
    assert (tmp_path / "log").read_text() == "x" * (retries + 1)


def test_a_deadly_row_costs_itself_and_nothing_beside_it(ray_session, make_context, tmp_path):
    class Fragile:
        def __init__(self, settings): ...

        def work(self, order):
            import os

            import polars

            if order["first"] <= 5 < order["first"] + order["rows"]:
                os.kill(os.getpid(), 9)
            numbers = list(range(order["first"], order["first"] + order["rows"]))
            return polars.DataFrame(
                {"number": numbers, "error": [None] * len(numbers)},
                schema={"number": polars.Int64, "error": polars.String},
            )

        @staticmethod
        def split(order):
            if order["rows"] == 1:
                return []
            half = order["rows"] // 2
            pieces = ((order["first"], half), (order["first"] + half, order["rows"] - half))
            return [
                {"id": f"{order['id']}.{n}", "first": first, "rows": rows}
                for n, (first, rows) in enumerate(pieces)
            ]

        @staticmethod
        def failed(order, settings, reason):
            numbers = list(range(order["first"], order["first"] + order["rows"]))
            return pl.DataFrame({"number": numbers, "error": [reason] * len(numbers)})

    orders = [{"id": f"order-{first}", "first": first, "rows": 4} for first in (0, 4, 8)]
    context = make_context("run", "cluster.max_restarts=1")
    table = fulfil(Fragile, {}, orders, tmp_path / "stage", actors=2, context=context)
    assert table["number"].to_list() == list(range(12))
    assert table.filter(pl.col("error").is_not_null()).rows() == [
        (5, "killed its worker every time it was tried")
    ]


def test_only_names_of_errors_of_ours_are_kinds():
    assert [kind_named(name) for name in ("ModelError", "ValueError", "UnidetoxError", "")] == [
        ModelError,
        StageError,
        StageError,
        StageError,
    ]


def test_a_part_with_too_few_rows_is_named(ray_session, make_context, tmp_path):
    settings = {"log": str(tmp_path / "log"), "short_at": 1}
    with pytest.raises(StageError, match=r"order order-1 has 1 rows, expected 2; delete .*parts"):
        fulfil(worker(), settings, ORDERS[:2], tmp_path / "short", actors=1, context=make_context())
