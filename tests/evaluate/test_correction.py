"""Corrected shares: the formulas by hand, coverage by simulation, samples that tell nothing, files of labels."""

import numpy as np
import polars as pl
import pytest

from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.evaluate.correction import Labelled, corrected_share, labelled_of, read_labelled
from unidetox_ray.metrics.stats import Resampler, plain_mean


def sample(hits, misses, rejections, alarms):
    flags = [1.0] * hits + [0.0] * misses + [0.0] * rejections + [1.0] * alarms
    truths = [1.0] * (hits + misses) + [0.0] * (rejections + alarms)
    return Labelled(np.array(flags), np.array(truths), 0)


def drawn(generator, share, sens, spec, size):
    """(flags, truths) of `size` texts."""
    truths = generator.random(size) < share
    flags = np.where(truths, generator.random(size) < sens, generator.random(size) < 1 - spec)
    return flags.astype(float), truths.astype(float)


def test_the_estimate_by_hand():
    found = corrected_share(0.3, sample(80, 20, 90, 10), n=1000)
    assert found.value == pytest.approx((0.3 + 0.9 - 1) / (0.8 + 0.9 - 1))
    assert (found.sensitivity, found.specificity, found.labelled, found.clipped) == (0.8, 0.9, 200, False)
    assert found.low < found.value < found.high
    perfect = corrected_share(0.3, sample(5000, 0, 5000, 0), n=10**6)
    assert perfect.value == pytest.approx(0.3)
    assert perfect.high - perfect.low < 0.01


def test_the_published_interval():
    """Lang and Reiczigel's interval written out once more, number by number."""
    z = 1.959963984540054
    found = corrected_share(0.3, sample(80, 20, 90, 10), n=100)
    share = (30 + z * z / 2) / (100 + z * z)
    sens, spec = 81 / 102, 91 / 102
    value = (share + spec - 1) / (sens + spec - 1)
    shift = 2 * z * z * (value * sens * (1 - sens) / 102 - (1 - value) * spec * (1 - spec) / 102)
    variance = (
        share * (1 - share) / (100 + z * z)
        + value**2 * sens * (1 - sens) / 102
        + (1 - value) ** 2 * spec * (1 - spec) / 102
    )
    width = z * variance**0.5 / (sens + spec - 1)
    assert (found.low, found.high) == pytest.approx((value + shift - width, value + shift + width))


def test_an_estimate_outside_is_clipped_and_says_so():
    low = corrected_share(0.08, sample(80, 20, 90, 10), n=1000)
    assert (low.value, low.low, low.clipped) == (0.0, 0.0, True)
    assert 0 < low.high < 0.2
    high = corrected_share(0.82, sample(80, 20, 90, 10), n=1000)
    assert (high.value, high.high, high.clipped) == (1.0, 1.0, True)
    assert 0.8 < high.low < 1


@pytest.mark.parametrize("share", [0.0, 0.02, 0.97])
def test_error_rates_that_cannot_explain_the_measurement_are_refused(share):
    with pytest.raises(DataError, match="cannot explain at any true share"):
        corrected_share(share, sample(80, 20, 90, 10), n=1000)


@pytest.mark.parametrize("method", ["rogan-gladen", "prediction-powered"])
def test_a_sample_of_one_class_is_refused(method):
    with pytest.raises(DataError, match="no toxic text among its 3 rows"):
        labelled_of([0.1, 0.9, None, 0.2], [False, False, True, False])
    with pytest.raises(DataError, match="no clean text among its 2 rows"):
        labelled_of([0.1, 0.9], [True, True])
    with pytest.raises(DataError, match="no toxic text"):
        labelled_of([], [])


def test_a_scorer_no_better_than_chance_is_refused_for_one_method():
    useless = sample(5, 5, 5, 5)
    with pytest.raises(DataError, match="no better than chance"):
        corrected_share(0.5, useless, n=100)
    found = corrected_share(0.5, useless, n=10**6, method="prediction-powered")
    assert found.value == pytest.approx(0.5)  # the labels alone
    with pytest.raises(ConfigError, match="rogan-gladen, prediction-powered"):
        corrected_share(0.5, useless, n=100, method="other")
    for share, n in ((1.2, 10), (float("nan"), 10), (0.5, 0)):
        with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
            corrected_share(share, useless, n=n)


def test_scores_that_failed_take_no_part():
    found = labelled_of([0.9, 0.5, None, float("nan"), 0.1], [True, True, True, False, False])
    assert (found.positives, found.negatives, found.failed) == (2, 1, 2)
    assert (found.sensitivity, found.specificity) == (0.5, 1.0)  # 0.5 is not above 0.5


@pytest.mark.parametrize(("share", "sens", "spec", "n", "labelled"), [
    (0.3, 0.8, 0.95, 1000, 200), (0.05, 0.7, 0.98, 2000, 400), (0.5, 0.9, 0.8, 300, 60), (0.02, 0.95, 0.999, 500, 100),
    (0.8, 0.8, 0.8, 500, 100),
])  # fmt: skip
def test_intervals_of_rogan_gladen_hold_the_truth(share, sens, spec, n, labelled):
    """At least 93 % of 95 % intervals over 600 worlds, with draws and without; neither is so wide that it says nothing."""
    generator = np.random.default_rng(5)
    inside, widths, worlds = np.zeros(2), np.zeros(2), 600
    for _ in range(worlds):
        flags, _ = drawn(generator, share, sens, spec, n)
        half = labelled // 2
        known = np.concatenate([generator.random(half) < sens, generator.random(half) < 1 - spec]).astype(
            float
        )
        knowledge = Labelled(known, np.repeat([1.0, 0.0], half), 0)
        if knowledge.sensitivity + knowledge.specificity <= 1:
            continue
        measured = float(flags.mean())
        draws = generator.binomial(n, measured, size=1000) / n
        for way, given in enumerate((None, draws)):
            found = corrected_share(measured, knowledge, n=n, draws=given)
            inside[way] += found.low <= share <= found.high
            widths[way] += found.high - found.low
    assert (inside / worlds > 0.93).all(), inside / worlds
    assert (widths / worlds < 0.35).all(), widths / worlds


@pytest.mark.parametrize(("share", "sens", "spec", "n", "labelled"), [
    (0.3, 0.8, 0.95, 5000, 300), (0.5, 0.6, 0.6, 2000, 200), (0.2, 0.99, 0.9, 1000, 200),
])  # fmt: skip
def test_prediction_powered_intervals_hold_the_truth_and_are_shorter_than_the_labels_alone(
    share, sens, spec, n, labelled
):
    generator = np.random.default_rng(6)
    inside, width, alone, worlds = 0, 0.0, 0.0, 600
    for _ in range(worlds):
        flags, _ = drawn(generator, share, sens, spec, n)
        known = Labelled(*drawn(generator, share, sens, spec, labelled), 0)
        found = corrected_share(float(flags.mean()), known, n=n, method="prediction-powered")
        inside += found.low <= share <= found.high
        width += found.high - found.low
        alone += 2 * 1.96 * float(known.truths.std(ddof=1)) / labelled**0.5
    assert inside / worlds > 0.93
    assert width < alone * 1.01
    if sens + spec > 1.7:
        assert width < alone * 0.85


def test_texts_of_one_prompt_widen_the_interval():
    """Continuations of a prompt are alike; draws by prompt carry that into the corrected interval."""
    generator = np.random.default_rng(7)
    risky = generator.random(100) < 0.3
    flags = np.where(risky[:, None], generator.random((100, 25)) < 0.9, generator.random((100, 25)) < 0.02)
    share, known = float(flags.mean()), sample(900, 100, 980, 20)
    statistic = plain_mean(flags.mean(axis=1), ceiling=1.0)
    by_prompt = Resampler([0] * 100, samples=2000).draws([statistic])[0]
    clustered = corrected_share(share, known, n=100, draws=by_prompt)
    naive = corrected_share(share, known, n=2500)
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)
    assert clustered == corrected_share(share, known, n=100, draws=by_prompt)


def test_prediction_powered_weighs_by_as_many_texts_as_the_draws_stand_for():
    """Texts of a prompt that have nothing in common count each for itself, though prompts are drawn."""
    flags = (np.random.default_rng(11).random((200, 5)) < 0.3).astype(float)
    known, share = sample(80, 20, 180, 20), float(flags.mean())
    by_prompt = Resampler([0] * 200, samples=4000).draws([plain_mean(flags.mean(axis=1), ceiling=1.0)])[0]
    found = corrected_share(share, known, n=200, draws=by_prompt, method="prediction-powered")
    alone = corrected_share(share, known, n=1000, method="prediction-powered")
    assert found.value == pytest.approx(alone.value, abs=0.003)
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_no_flag_at_all_still_bounds_the_share():
    known = sample(20, 0, 20, 0)
    for draws in (np.zeros(1000), None):
        found = corrected_share(0.0, known, n=50, draws=draws)
        assert found.value == 0.0
        assert 0.03 < found.high < 0.2
    agreed = corrected_share(0.0, known, n=10**6, method="prediction-powered")
    assert agreed.high > agreed.value


def test_labels_are_read_as_people_write_them(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('text,label\n"a, b",1\nc,0\nNA,TRUE\n,no\n')
    found = read_labelled(path)
    assert found["text"].to_list() == ["a, b", "c", "NA", ""]
    assert found["label"].to_list() == [True, False, True, False]
    lines = tmp_path / "labels.jsonl"
    lines.write_text('{"comment_text": "a", "toxic": 1}\n{"comment_text": "b", "toxic": false}\n')
    assert read_labelled(lines)["label"].to_list() == [True, False]
    parquet = tmp_path / "labels.parquet"
    pl.DataFrame({"text": ["a", "b"], "label": [0.0, 1.0]}).write_parquet(parquet)
    assert read_labelled(parquet)["label"].to_list() == [False, True]


@pytest.mark.parametrize(("content", "words"), [
    ("text,label\na,0.7\n", "row 1: 'label' holds '0.7'"), ("text,label\na,1\nb,\n", "row 2"), ("text,what\na,1\n", "no column 'label'"),
    ("what,label\na,1\n", "no column 'text'"), ("text,label\n", "no rows"),
])  # fmt: skip
def test_files_that_hold_no_labels(tmp_path, content, words):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_labelled(path)
