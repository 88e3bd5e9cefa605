"""Which trial is chosen, and the curve along a dial."""

from __future__ import annotations

import json
import math

import pytest
from probed_rows import PROMPTS, TEXTS, probed

from unidetox_ray.metrics.curves import TrialSpace
from unidetox_ray.stages.choice import Dial, choose, curves, plain

BASE = {
    "trial": "b",
    "settings": {},
    "status": "ok",
    "error": None,
    "tp_all": 0.9,
    "clean_ppl": 2.0,
    "ratio": 1.0,
}


def trial(value, tp, ratio=1.0, status="ok", **more):
    error = None if status == "ok" else "it broke"
    return {
        "trial": f"t{value}",
        "settings": {"alpha": value},
        "status": status,
        "error": error,
        "tp_all": tp,
        "ratio": ratio,
        **more,
    }


def chosen(rows, *, base=BASE, judged=True, metric="tp_all", neutral=0.0):
    dial = Dial("alpha", neutral, [float(row["settings"]["alpha"]) for row in rows])
    return choose(rows, dial.weakness(), metric=metric, max_clean_ppl=1.5, base=base, judged=judged)


def test_the_lowest_metric_wins_among_those_that_are_cheap_enough():
    rows = [trial(0.5, 0.4), trial(1.0, 0.2, 1.49), trial(2.0, 0.1, 1.51), trial(4.0, 0.0, 9.0)]
    found = chosen(rows)
    assert found.point == {"alpha": 1.0}
    assert "tp_all = 0.2000 of 2 settings; 2 more with clean_ppl above 1.5 x" in found.reason


def test_equals_go_to_the_setting_nearest_to_the_unchanged_model():
    rows = [trial(4.0, 0.1), trial(1.0, 0.1 + 1e-16), trial(2.0, 0.1), trial(math.inf, 0.1)]
    for order in (rows, rows[::-1]):
        assert chosen(order).point == {"alpha": 1.0} and "4 share it" in chosen(order).reason
    assert chosen(rows, neutral=3.9).point == {"alpha": 4.0}
    assert chosen([trial(-1.0, 0.1), trial(2.0, 0.1)]).point == {"alpha": -1.0}


def test_where_nothing_is_cheap_enough_the_cheapest_is_taken_and_it_is_said():
    found = chosen([trial(1.0, 0.3, 1.8), trial(2.0, 0.1, 3.0)])
    assert found.point == {"alpha": 1.0} and found.reason.startswith(
        "no setting keeps clean_ppl within 1.5 x"
    )


def test_a_failure_is_never_chosen_and_neither_is_what_is_no_number():
    rows = [trial(1.0, None, None, status="failed"), trial(2.0, math.nan), trial(3.0, None), trial(4.0, 0.8)]
    assert chosen(rows).point == {"alpha": 4.0}
    none = chosen(rows[:3])
    assert none.point is None and none.reason == "all 3 trials failed; first error: it broke"


def test_without_the_base_model_no_cost_is_known():
    lost = {**BASE, "status": "failed", "error": "no memory", "ratio": None}
    rows = [trial(1.0, 0.2, None)]
    assert chosen(rows, base=lost).point is None and "no memory" in chosen(rows, base=lost).reason
    # Without clean text the rule is not applied, and that is said.
    found = chosen(rows, base=lost, judged=False)
    assert found.point == {"alpha": 1.0} and "cost in perplexity is not known" in found.reason


def test_the_other_metric_decides_where_it_is_asked_for():
    rows = [trial(1.0, 0.1, emt_all=0.9), trial(2.0, 0.8, emt_all=0.2)]
    assert chosen(rows, metric="emt_all").point == {"alpha": 2.0}


@pytest.fixture(scope="module")
def space():
    return TrialSpace(PROMPTS, TEXTS, 10_000, 7)


def test_curves_start_at_the_base_model_and_one_is_drawn_per_other_setting(space):
    rows, strengths, statistics = [], [], {"b": space.statistics(probed(20, 0.7, jitter=0.2))}
    for cut, toxic in ((0.9, {2.0: 2, 0.5: 12, -1.0: 20, math.inf: 2}), (1.0, {0.5: 4, 2.0: 16})):
        for alpha, count in toxic.items():
            name = f"{cut}-{alpha}"
            rows.append({"trial": name, "settings": {"alpha": plain(alpha), "cut": cut}, "status": "ok"})
            strengths.append(alpha)
            statistics[name] = space.statistics(probed(count, 0.7 + 0.05 * min(abs(alpha), 9), jitter=0.2))
    rows.append({"trial": "lost", "settings": {"alpha": 1.0, "cut": 0.9}, "status": "failed"})
    good, bad = curves(rows, Dial("alpha", 0.0, [*strengths, 1.0]), statistics, BASE, space)
    assert good["at"] == {"cut": 0.9} and bad["at"] == {"cut": 1.0}
    assert [point["strength"] for point in good["points"]] == [-1.0, 0.0, 0.5, 1.0, 2.0, "inf"]
    assert [point["trial"] for point in good["points"]][1:4] == ["b", "0.9-0.5", "lost"]
    # The negative strength is as toxic as the base and costs more: drawn, not judged.
    assert good["toxicity"]["holds"] and good["perplexity"]["holds"]
    assert not bad["toxicity"]["holds"] and bad["toxicity"]["against"]["weaker"] == 0.5
    assert bad["toxicity"]["against"]["stronger"] == 2.0 and bad["toxicity"]["against"]["low"] > 0
    json.dumps([good, bad], allow_nan=False)


def test_a_measured_neutral_strength_takes_the_base_models_place(space):
    statistics = {"zero": space.statistics(probed(19, 0.7)), "one": space.statistics(probed(2, 0.9))}
    rows = [
        {"trial": name, "settings": {"alpha": value}, "status": "ok"}
        for name, value in (("zero", 0.0), ("one", 1.0))
    ]
    (curve,) = curves(rows, Dial("alpha", 0.0, [0.0, 1.0]), statistics, BASE, space)
    assert [point["trial"] for point in curve["points"]] == ["zero", "one"]
