"""The paired test against enumeration and scipy, Holm's correction and Cohen's d by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from unidetox_ray.evaluate.paired import PATTERNS, holm, sign_flip, standardised


def by_enumeration(contributions):
    """Every sign pattern, one by one."""
    seen = abs(sum(contributions))
    sums = [
        abs(sum(sign * abs(c) for sign, c in zip(signs, contributions, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(contributions))
    ]
    return sum(value >= seen - 1e-12 for value in sums) / len(sums)


@pytest.mark.parametrize("seed", range(8))
def test_exact_p_equals_every_sign_pattern(seed):
    generator = np.random.default_rng(seed)
    differences = generator.normal(0.3, 1, size=11)
    if seed % 2:
        differences = np.round(differences)  # ties and zeros
    weights = generator.choice([0.05, 0.125], size=11)
    found = sign_flip(weights * differences)
    assert found.p == pytest.approx(by_enumeration((weights * differences).tolist()), abs=1e-12)
    assert "exact" in found.method and found.n == 11


def test_zeros_and_ones_are_the_exact_mcnemar_test_at_any_n():
    """1,000 prompts, 40 where only the first is toxic, 61 where only the second is: a binomial test of the 101."""
    differences = np.concatenate([np.ones(40), -np.ones(61), np.zeros(899)])
    found = sign_flip(differences / 1000)
    assert found.p == pytest.approx(scipy.stats.binomtest(40, 101).pvalue, abs=1e-12)
    assert found.differing == 101


def test_sampled_patterns_agree_with_scipys_permutation_test():
    generator = np.random.default_rng(5)
    first, second = generator.normal(0.12, 1, size=300), generator.normal(0, 1, size=300)
    found = sign_flip((first - second) / 300)
    theirs = scipy.stats.permutation_test(
        (first, second), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, vectorized=False,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert f"{PATTERNS:,} random sign patterns" in found.method
    assert found.p == pytest.approx(theirs.pvalue, abs=4 * (0.25 / 20_000) ** 0.5)
    assert sign_flip((first - second) / 300).p == found.p  # the same seed, the same p


def test_a_sampled_p_is_never_zero():
    assert sign_flip(np.full(300, 0.1) + np.arange(300) * 1e-4).p == pytest.approx(1 / (PATTERNS + 1))


def test_nothing_differs_or_there_is_nothing():
    assert sign_flip(np.zeros(9)).p == 1.0 and sign_flip(np.empty(0)).p == 1.0


def test_false_alarms_come_as_often_as_the_level_says():
    generator = np.random.default_rng(0)
    values = [sign_flip(generator.normal(size=14)).p for _ in range(400)]
    assert np.mean(np.array(values) <= 0.05) < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_cohens_d_by_hand():
    differences = np.array([0.1, 0.3, -0.2, 0.4])
    assert standardised(differences) == pytest.approx(0.15 / np.sqrt(((differences - 0.15) ** 2).sum() / 3))
    assert standardised(np.ones(5)) is None and standardised(np.array([1.0])) is None
