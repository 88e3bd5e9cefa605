"""Statistics of trials are those of the probe, and a dial's course is judged by paired intervals."""

from __future__ import annotations

import math

import polars as pl
import pytest
from probed_rows import PROMPTS, TEXTS, probed

from unidetox_ray.metrics.curves import TrialSpace, course
from unidetox_ray.metrics.measure import ResultSettings
from unidetox_ray.metrics.pairs import cell_differences
from unidetox_ray.schemas import GENERATIONS, SCORES, frame


@pytest.fixture(scope="module")
def space() -> TrialSpace:
    return TrialSpace(PROMPTS, TEXTS, 10_000, 7)


def test_a_trials_numbers_and_their_intervals(space):
    assert PROMPTS["domain"].n_unique() == 4
    found = space.intervals(space.statistics(probed(5, 0.7, jitter=0.3)))
    assert found["tp_all"].value == pytest.approx(0.25) and found["emt_all"].value == pytest.approx(0.3)
    assert 0.1 < found["tp_all"].low < 0.25 < found["tp_all"].high < 0.4
    mean = sum(0.7 + 0.3 * math.sin(place) for place in range(40)) / 40
    assert found["clean_ppl"].value == pytest.approx(math.exp(mean))
    assert found["clean_ppl"].low < found["clean_ppl"].value < found["clean_ppl"].high


def test_a_prompt_without_a_score_and_a_trial_without_clean_text(space):
    table = probed(5, 0.7).with_columns(
        pl.when(pl.col("item") == PROMPTS["prompt_id"][19])
        .then(None)
        .otherwise(pl.col("value"))
        .alias("value")
    )
    statistics = space.statistics(table)
    # 5 of 19 in the first domain, 5 of 20 in the three others.
    assert statistics["tp_all"].value == pytest.approx((5 / 19 + 3 * 0.25) / 4)
    only = space.statistics(probed(5, 0.7).filter(pl.col("metric") != "clean_nll"))
    assert set(only) == {"tp_all", "emt_all"}
    assert course(space, "clean_ppl", [only, only], "rises") is None


def along(space, toxic: list[int], nll: list[float], first: tuple[int, ...] = (0,)):
    starts = [first[place % len(first)] for place in range(len(toxic))]
    points = [
        space.statistics(probed(t, n, jitter=0.2, first=f))
        for t, n, f in zip(toxic, nll, starts, strict=True)
    ]
    return course(space, "tp_all", points, "falls"), course(space, "clean_ppl", points, "rises")


def test_a_dial_that_does_what_it_should(space):
    toxicity, perplexity = along(space, [20, 12, 4, 4], [0.7, 0.7, 0.8, 1.2])
    assert toxicity.holds and toxicity.against is None
    assert toxicity.change.value == pytest.approx(-0.8) and toxicity.change.high < -0.6
    assert perplexity.holds and perplexity.change.low > 0


def test_a_rise_inside_the_interval_is_forgiven_and_one_beyond_it_is_named(space):
    inside, _ = along(space, [20, 4, 5], [0.7, 0.8, 0.9], (0, 0, 10))
    assert inside.holds
    # Each step alone could be chance; together they are a climb from the second strength to the last.
    climb, _ = along(space, [20, 2, 3, 4, 5, 6, 7], [0.7 + 0.1 * step for step in range(7)], (0, 0, 10))
    assert not climb.holds and climb.against is not None
    weak, strong, gap = climb.against
    assert (weak, strong) == (1, 6) and gap.value == pytest.approx(0.25) and gap.low > 0


def test_what_does_not_move_does_not_hold(space):
    flat, still = along(space, [20, 20], [0.7, 0.7])
    assert not flat.holds and flat.against is None
    assert not still.holds and still.against is None
    _, cheaper = along(space, [20, 10], [0.9, 0.7])
    assert not cheaper.holds and cheaper.against is not None and cheaper.against[2].high < 0


def test_two_cells_are_compared_in_pairs_and_the_other_way_round():
    prompts = PROMPTS
    scores, generations = [], []
    for cell, toxic in (("own", 3), ("universal", 9)):
        for part in prompts.partition_by("domain", maintain_order=True):
            for place, prompt in enumerate(part["prompt_id"].to_list()):
                where = {"cell": cell, "prompt_id": prompt, "run": 0, "sample": 0, "error": None}
                value = 0.9 if place < toxic else 0.1
                scores.append({**where, "metric": "toxicity", "scorer": "s", "value": value, "weight": 1.0})
                generations.append({**where, "text": "a b", "n_tokens": 2, "ended": False})
    settings = ResultSettings(threshold=0.5, scorer="s", judge=None)
    pairs = [("own", "universal"), ("universal", "own")]
    one, other = cell_differences(
        frame(scores, SCORES), frame(generations, GENERATIONS), prompts, pairs, ["tp_all", "ppl"], settings
    )
    assert set(one) == {"tp_all"}  # there is no judge of perplexity
    assert one["tp_all"]["diff"] == pytest.approx(-0.3) and one["tp_all"]["diff_high"] < 0
    assert other["tp_all"]["diff_low"] == pytest.approx(-one["tp_all"]["diff_high"])
    assert (
        cell_differences(
            frame(scores, SCORES), frame(generations, GENERATIONS), prompts, [], ["tp_all"], settings
        )
        == []
    )
