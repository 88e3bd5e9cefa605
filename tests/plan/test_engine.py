"""The schedule, event by event, on stages small enough to work out by hand, and its bounds on any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidetox_ray.plan import devices, engine
from unidetox_ray.plan.engine import Cell, Item, Stage

FLEET = devices.parse("a100-80:4")
CELL = Cell("s", "gpt2", "base", 1)


def ran(stage: Stage, count: int = 4) -> engine.Ran:
    return engine.scheduled([stage], replace(FLEET, count=count)).ran[0]


def pool(*seconds: float, **more: object) -> Stage:
    return Stage("s", (tuple(Item(CELL, each) for each in seconds),), lanes=len(seconds), **more)


def test_a_pool_takes_item_by_item():
    assert ran(pool(4, 4, 4, 4, 4), 2).seconds == 12
    assert ran(pool(4, 4, 4, 4, 4), 8).seconds == 4
    assert ran(pool(6, 3, 3, 3), 2).seconds == 9  # 6 + 3 beside 3 + 3


def test_groups_keep_their_queues_and_hold_their_workers():
    queues = tuple(tuple(Item(Cell("s", family, m), 5) for m in "ab") for family in ("gpt2", "opt"))
    stage = Stage("s", queues, lanes=2, devices=2.0, shared=False)
    assert ran(stage, 4).seconds == 10 and ran(stage, 4).held == 4
    assert ran(stage, 2).seconds == 20 and ran(stage, 2).lanes == 1
    assert ran(replace(stage, extra_lanes=1), 8).seconds == 20
    # No device helps a group that there is none for.
    assert (
        ran(stage, 400).seconds == 10
        and max(ran(stage, 400).lost, key=ran(stage, 400).lost.get) == "longest cell"
    )


def test_the_driver_hands_out_one_order_at_a_time():
    many = Stage("s", ((Item(CELL, 1.0, count=1000),),), lanes=1000, order=0.1)
    found = ran(many, 1000)
    # Ten lanes are kept busy by a driver that needs a tenth of an order's time.
    assert found.seconds == pytest.approx(100 + 1, rel=0.02)
    assert max(found.lost, key=found.lost.get) == "driver"


def test_a_model_is_opened_once_a_lane_and_again_after_another():
    load = FLEET.rates.host["read_bytes"]
    one = engine.opening(FLEET.rates, load)
    items = (
        Item(CELL, 1, "a", load),
        Item(CELL, 1, "a", load),
        Item(CELL, 1, "b", load),
        Item(CELL, 1, "a", load),
    )
    assert ran(Stage("s", (items,), lanes=1), 1).seconds == pytest.approx(4 + 3 * one)


def test_stages_follow_one_another_and_what_is_alone_holds_nothing():
    stages = [pool(2, 2, start=3.0), Stage("report", ((),), alone=5.0)]
    schedule = engine.scheduled(stages, FLEET, begin=1.0)
    assert [each.start for each in schedule.ran] == [1, 6] and schedule.seconds == 11
    assert schedule.ran[1].held == 0 and schedule.ran[0].bars[0].start == 4


def test_no_lanes_where_a_lane_holds_more_than_there_is():
    # It is refused by the plan; the schedule still has an answer.
    assert ran(pool(1, 1, devices=8.0), 4).lanes == 1
    assert ran(pool(1, 1, 1, devices=0.25), 1).lanes == 3


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=40), st.integers(1, 12), st.floats(0, 5), st.booleans()
)  # fmt: skip
def test_every_schedule_lies_between_its_bounds(seconds, lanes, start, bars):
    stage = Stage("s", (tuple(Item(CELL, each) for each in seconds),), lanes=lanes, start=start)
    found = engine.scheduled([stage], replace(FLEET, count=64), bars=bars).ran[0]
    work = found.seconds - start
    best = max(max(seconds), sum(seconds) / found.lanes)
    # Graham 1966: handing out in any order is at most 2 - 1/m times the best.
    assert best * (1 - 1e-9) <= work <= best * (2 - 1 / found.lanes) * (1 + 1e-9)
    # No device-second is counted twice or lost: work and losses are the whole fleet's time.
    assert found.busy + sum(found.lost.values()) == pytest.approx(64 * found.seconds)
    if bars:
        assert sum(bar.end - bar.start for bar in found.bars) == pytest.approx(sum(seconds))
