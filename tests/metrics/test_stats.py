"""The bootstrap against plain resampling, its properties, and its coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidetox_ray.metrics import stats
from unidetox_ray.metrics.stats import (
    Median,
    RatioMean,
    Resampler,
    interval,
    macro_mean,
    paired_difference,
    plain_mean,
)

values_strategy = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=40).map(np.array)


@given(values_strategy)
@settings(max_examples=60, deadline=None)
def test_interval_holds_its_estimate(values):
    statistic = plain_mean(values, ceiling=1.0)
    found = interval(statistic, Resampler(np.zeros(len(values), int), 200, 1).draws([statistic])[0])
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(values.mean())
    assert found.low >= -1e-9 and found.high <= 1 + 1e-9


@given(st.lists(st.integers(0, 3), min_size=1, max_size=50), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_each_stratum_keeps_its_size(strata, seed):
    strata = np.array(strata)
    weights = np.concatenate(list(Resampler(strata, 50, seed).weights()))
    assert weights.shape == (50, len(strata))
    for code in np.unique(strata):
        assert (weights[:, strata == code].sum(axis=1) == (strata == code).sum()).all()


@given(values_strategy, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_prompts_changes_no_estimate_and_hardly_the_interval(values, random):
    domains = np.arange(len(values)) % 2 if len(values) > 1 else np.zeros(1, int)
    wanted = np.unique(domains)
    order = list(range(len(values)))
    random.shuffle(order)
    one, other = (
        macro_mean(values[o], domains[o], wanted) for o in (np.arange(len(values)), np.array(order))
    )
    assert one.value == pytest.approx(other.value)
    ends = []
    for statistic, codes in ((one, domains), (other, domains[order])):
        found = interval(statistic, Resampler(codes, 2000, 3).draws([statistic])[0])
        ends.append((found.low, found.high))
    spread = max(np.ptp(values), 1e-9)
    assert np.abs(np.subtract(*ends)).max() <= 0.25 * spread


def test_draws_equal_a_plain_loop_over_the_same_weights():
    generator = np.random.default_rng(0)
    values, domains = generator.random(23), generator.integers(0, 3, 23)
    values[4] = np.nan
    numbers, sizes = generator.random((23, 2)), generator.integers(0, 4, (23, 2)).astype(float)
    macro, ratio = (
        macro_mean(values, domains, [0, 2]),
        RatioMean(numbers * (sizes > 0), sizes, transform=np.exp),
    )
    resampler = Resampler(domains, 300, 5)
    drawn = resampler.draws([macro, ratio])
    for row, weights in enumerate(np.concatenate(list(resampler.weights()))):
        picked = np.repeat(np.arange(23), weights)
        means = [np.nanmean(values[picked[domains[picked] == code]]) for code in (0, 2)]
        assert drawn[0][row] == pytest.approx(np.mean(means))
        parts = [np.exp((numbers * (sizes > 0))[picked, r].sum() / sizes[picked, r].sum()) for r in range(2)]
        assert drawn[1][row] == pytest.approx(np.mean(parts))


def test_medians_equal_a_plain_loop_over_the_same_weights():
    generator = np.random.default_rng(1)
    clusters = generator.integers(0, 30, 180)
    values = np.round(generator.lognormal(size=180), 1)
    resampler = Resampler(np.zeros(30, int), 400, 2)
    drawn = resampler.median_draws(values, clusters)
    for row, weights in enumerate(np.concatenate(list(resampler.weights()))):
        repeated = np.sort(np.repeat(values, weights[clusters]))
        assert drawn[row] == repeated[(len(repeated) - 1) // 2]


def test_a_coarse_median_stays_within_a_step_of_the_grid():
    generator = np.random.default_rng(1)
    clusters, values = generator.integers(0, 50, 20_000), generator.lognormal(size=20_000)
    resampler = Resampler(np.zeros(50, int), 200, 2)
    exact = resampler.median_draws(values, clusters, resolution=20_000)
    coarse = resampler.median_draws(values, clusters, resolution=128)
    assert (coarse >= exact).all()
    assert (coarse - exact).max() <= np.ptp(exact) / 20


def test_weights_do_not_depend_on_whether_they_are_kept(monkeypatch):
    strata = np.arange(60) % 3
    kept = Resampler(strata, 500, 9)
    first, second = (np.concatenate(list(kept.weights())) for _ in range(2))
    monkeypatch.setattr(stats, "KEEP_BYTES", 0)
    fresh = np.concatenate(list(Resampler(strata, 500, 9).weights()))
    assert (first == second).all() and (first == fresh).all()
    assert not (fresh == np.concatenate(list(Resampler(strata, 500, 10).weights()))).all()


def test_weights_come_in_bounded_blocks(monkeypatch):
    monkeypatch.setattr(stats, "CHUNK_BYTES", 8 * 100 * 7)
    blocks = list(Resampler(np.zeros(100, int), 50, 0).weights())
    assert [len(block) for block in blocks] == [7] * 7 + [1]


def test_paired_difference_uses_only_common_prompts_and_the_same_resamples():
    generator = np.random.default_rng(4)
    hard = generator.random(80)
    base, ours = plain_mean(hard), plain_mean(np.where(np.arange(80) < 5, np.nan, hard - 0.1))
    found = paired_difference(Resampler(np.zeros(80, int), 2000, 0), ours, base)
    # Every prompt fell by exactly 0.1: pairing leaves no uncertainty at all.
    assert found.value == pytest.approx(-0.1)
    assert found.low == pytest.approx(-0.1) and found.high == pytest.approx(-0.1)
    alone = interval(base, Resampler(np.zeros(80, int), 2000, 0).draws([base])[0])
    assert alone.high - alone.low > 0.1


def test_paired_difference_of_medians_restricts_too():
    values, clusters = np.arange(20.0), np.arange(20) // 2
    ours, theirs = Median(values + 3, clusters, 12), Median(np.arange(24.0), np.arange(24) // 2, 12)
    found = paired_difference(Resampler(np.zeros(12, int), 300, 0), ours, theirs)
    assert found.value == pytest.approx(3.0) and found.low == found.high == pytest.approx(3.0)


@pytest.mark.parametrize("n, bound", [(1, 1.0), (3, 1.0), (100, 0.03), (0, 1.0)])
def test_rule_of_three(n, bound):
    assert stats.rule_of_three(n) == pytest.approx(bound)


@pytest.mark.parametrize("n", [30, 100, 1000])
def test_rule_of_three_is_the_share_that_would_go_unseen_one_time_in_twenty(n):
    assert (1 - stats.rule_of_three(n)) ** n == pytest.approx(0.05, abs=0.01)


def test_zero_and_all_counts_get_one_sided_bounds():
    for share, ends in ((0.0, (0.0, 0.03)), (1.0, (0.97, 1.0))):
        statistic = plain_mean(np.full(100, share), ceiling=1.0)
        found = interval(statistic, Resampler(np.zeros(100, int), 200, 0).draws([statistic])[0])
        assert (found.low, found.high) == pytest.approx(ends)
    domains = np.repeat([0, 1, 2], [10, 50, 100])
    statistic = macro_mean(np.zeros(160), domains, [0, 1, 2], ceiling=1.0)
    found = interval(statistic, Resampler(domains, 200, 0).draws([statistic])[0])
    # The worst case of a macro mean puts every unseen event into the smallest domain: (3/10)/3.
    assert found.high == pytest.approx(0.1)


def test_domains_that_are_each_all_or_nothing_are_not_certain():
    domains = np.repeat(np.arange(4), [3, 3, 2, 2])
    values = (domains == 0).astype(float)
    resampler = Resampler(domains, 400)
    few = macro_mean(values, domains, range(4), ceiling=1.0)
    found = interval(few, resampler.draws([few])[0])
    assert (found.value, found.low) == (0.25, 0.0) and found.high == pytest.approx(0.25 + 3 / 8)
    # One prompt that differs within a domain is something for resamples to differ by.
    values[1] = 0.0
    mixed = macro_mean(values, domains, range(4), ceiling=1.0)
    drawn = interval(mixed, resampler.draws([mixed])[0])
    assert drawn.value == pytest.approx(1 / 6) and 0 <= drawn.low < drawn.value < drawn.high < 0.3


def test_a_difference_between_two_zero_counts_is_not_certain():
    zero, one = plain_mean(np.zeros(100), ceiling=1.0), plain_mean(np.ones(100), ceiling=1.0)
    resampler = Resampler(np.zeros(100, int), 200, 0)
    same, full = paired_difference(resampler, zero, zero), paired_difference(resampler, zero, one)
    assert (same.value, same.low, same.high) == pytest.approx((0, -0.03, 0.03))
    assert (full.value, full.low, full.high) == pytest.approx((-1, -1, -0.97))


def test_no_data_is_not_a_number():
    nothing = plain_mean(np.full(5, np.nan), ceiling=1.0)
    found = interval(nothing, Resampler(np.zeros(5, int), 50, 0).draws([nothing])[0])
    assert np.isnan([found.value, found.low, found.high]).all() and nothing.n == 0
    missing_domain = macro_mean(np.ones(4), np.zeros(4, int), [0, 1])
    assert np.isnan(missing_domain.value)
    assert np.isnan(macro_mean(np.ones(4), np.zeros(4, int), []).value)
    assert np.isnan(Median(np.array([]), np.array([], int), 3).value)


def test_bootstrap_mean():
    found = stats.bootstrap_mean(np.array([0.0, 1.0, 1.0, np.nan]))
    assert found["value"] == pytest.approx(2 / 3) and found["n"] == 3
    assert 0 <= found["ci_low"] < found["value"] < found["ci_high"] <= 1
    assert stats.bootstrap_mean(np.array([np.nan]))["value"] is None


def test_coverage_of_the_interval():
    """Of 300 experiments with 60 prompts in two domains, about 95 % of the intervals hold the true macro mean."""
    generator = np.random.default_rng(11)
    domains = np.repeat([0, 1], [40, 20])
    resampler = Resampler(domains, 1000, 0)
    truth, hits = (0.3 + 0.6) / 2, 0
    statistics = [
        macro_mean((generator.random(60) < np.where(domains == 0, 0.3, 0.6)).astype(float), domains, [0, 1])
        for _ in range(300)
    ]
    for statistic, draws in zip(statistics, resampler.draws(statistics), strict=True):
        found = interval(statistic, draws)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 300 <= 0.985


def test_clusters_and_not_rows_carry_the_uncertainty():
    """25 equal rows per prompt must not make the interval 5 times narrower."""
    generator = np.random.default_rng(12)
    values = generator.random(40)
    one, many = (
        RatioMean(values[:, None], np.ones((40, 1))),
        RatioMean(25 * values[:, None], np.full((40, 1), 25.0)),
    )
    resampler = Resampler(np.zeros(40, int), 500, 0)
    assert resampler.draws([one])[0] == pytest.approx(resampler.draws([many])[0])
