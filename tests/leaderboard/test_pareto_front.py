"""The front: ties, missing numbers, and what holds for any points."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidetox_ray.leaderboard import pareto_front

COORDINATES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]) | st.floats(0, 10) | st.none()
POINTS = st.lists(st.tuples(COORDINATES, COORDINATES), max_size=12)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(0.5, 2.0)], [True]),
        # In order of the first, the second falls along the front; (0.6, 1.5) is beaten by (0.5, 1.2).
        ([(1.0, 1.0), (0.5, 1.2), (0.6, 1.5), (0.1, 4.0)], [True, True, False, True]),
        # Equal in one: the other decides.
        ([(0.5, 1.0), (0.5, 2.0)], [True, False]),
        ([(0.5, 1.0), (0.4, 1.0)], [False, True]),
        # Equal in both: neither beats the other, and both fall to a third.
        ([(0.5, 1.0), (0.5, 1.0), (0.9, 2.0)], [True, True, False]),
        ([(0.5, 1.0), (0.5, 1.0), (0.1, 0.5)], [False, False, True]),
        # What has no number has no place, and beats nobody.
        ([(0.0, None), (None, 0.0), (None, None), (0.5, 1.0)], [None, None, None, True]),
        ([(0.0, math.nan), (-math.inf, 0.0), (0.5, 1.0)], [None, None, True]),
    ],
)
def test_who_is_on_the_front(points: list, front: list) -> None:
    assert pareto_front(points) == front


@settings(max_examples=200, deadline=None)
@given(POINTS)
def test_every_point_off_the_front_is_beaten_by_one_on_it_and_none_on_it_is(points: list) -> None:
    found = pareto_front(points)
    assert [on is None for on in found] == [None in point for point in points]
    on = [point for point, value in zip(points, found, strict=True) if value]
    assert bool(on) is any(None not in point for point in points)
    for (x, y), value in zip(points, found, strict=True):
        if value is not None:
            better = [(a, b) for a, b in on if a <= x and b <= y and (a, b) != (x, y)]
            assert bool(better) is not value


@settings(max_examples=100, deadline=None)
@given(POINTS, st.randoms(use_true_random=False))
def test_the_order_of_points_changes_nothing(points: list, chance: random.Random) -> None:
    order = list(range(len(points)))
    chance.shuffle(order)
    found = pareto_front(points)
    assert pareto_front([points[index] for index in order]) == [found[index] for index in order]
