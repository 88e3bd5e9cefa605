"""Content analysis: n-grams, log-odds, TF-IDF, overlap, repetition, and the whole of it on files. No text is printed."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.metrics import content, content_ngrams, content_texts
from unidetox_ray.metrics.content_ngrams import (
    compare,
    cosine,
    gram_counts,
    jaccard,
    log_odds,
    tf_idf,
    word_table,
)

TEXTS = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=8).map(" ".join), max_size=8)


def grams(texts, orders=(1, 2, 3)):
    return gram_counts(word_table(texts), orders)


def rows(table, *columns):
    return list(table.select(columns).iter_rows())


def test_words_are_lower_case_runs_of_letters_marks_and_digits():
    texts = ["The CAT'S hat, don’t-stop; 3rd!", "", "—…", "naïve ÉTÉ 日本語_x", "a'' 'b"]
    assert rows(word_table(texts), "row", "word") == [
        (0, "the"), (0, "cat's"), (0, "hat"), (0, "don't"), (0, "stop"), (0, "3rd"),
        (3, "naïve"), (3, "été"), (3, "日本語"), (3, "x"), (4, "a"), (4, "b"),
    ]  # fmt: skip


def test_ngrams_stay_within_their_text_and_are_counted_by_use_and_by_text():
    found = grams(["a b a b", "a b", "b"])
    assert rows(found, "n", "ngram", "count", "texts") == [
        (1, "a", 3, 2), (1, "b", 4, 3),
        (2, "a b", 3, 2), (2, "b a", 1, 1),
        (3, "a b a", 1, 1), (3, "b a b", 1, 1),
    ]  # fmt: skip
    assert dict(found.schema) == content_ngrams.GRAMS


@given(TEXTS)
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_a_plain_loop(texts):
    wanted: Counter = Counter()
    for text in texts:
        words = text.split()
        wanted.update((1, word) for word in words)
        wanted.update((2, " ".join(pair)) for pair in pairwise(words))
    found = {(n, gram): count for n, gram, count in rows(grams(texts, (1, 2)), "n", "ngram", "count")}
    assert found == dict(wanted)


def test_log_odds_is_the_example_done_by_hand():
    # x 6 of 10 here, 2 of 10 there; prior of 10 pseudo-counts spread 8 : 12 as both together spread theirs.
    delta, z = log_odds(np.array([6.0, 4.0]), np.array([2.0, 8.0]), 10.0)
    ours, theirs = 6 + 4, 2 + 4
    wanted = math.log(ours / (20 - ours)) - math.log(theirs / (20 - theirs))
    assert delta[0] == pytest.approx(wanted) and wanted == pytest.approx(0.8472978603872037)
    assert z[0] == pytest.approx(wanted / math.sqrt(1 / 10 + 1 / 6))
    # Of two words, one's excess is the other's lack.
    assert delta[1] == pytest.approx(-delta[0])


def test_a_larger_prior_shrinks_and_rare_words_shrink_most():
    ours, theirs = np.array([1.0, 100.0, 899.0]), np.array([0.0, 50.0, 950.0])
    _, small = log_odds(ours, theirs, 10.0)
    _, large = log_odds(ours, theirs, 10_000.0)
    assert (np.abs(large) < np.abs(small)).all()
    # Seen once against never has infinite raw odds, and yet ranks below what is seen often.
    assert 0 < small[0] < small[1]


@given(TEXTS, TEXTS)
@settings(max_examples=60, deadline=None)
def test_swapping_the_corpora_flips_the_sign(first, second):
    there = compare(grams(first), grams(second), prior_share=0.7)
    back = compare(grams(second), grams(first), prior_share=0.7)
    assert there.height == back.height
    joined = there.join(back, on=["n", "ngram"], suffix="_back")
    assert joined.height == there.height
    assert np.allclose(joined["z"].to_numpy(), -joined["z_back"].to_numpy())
    assert (joined["count"] == joined["count_reference_back"]).all()
    assert np.isfinite(there["z"].to_numpy()).all() and np.isfinite(there["log_odds"].to_numpy()).all()


@given(TEXTS, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_equal_corpora_have_no_distinctive_ngram_whatever_their_size(texts, times):
    found = compare(grams(texts * times), grams(texts), prior_share=0.5)
    assert np.allclose(found["z"].to_numpy(), 0.0, atol=1e-9)
    if times == 1:
        assert (found["z"] == 0).all()


def test_the_sign_points_to_the_corpus_and_the_cuts_come_after_counting():
    first, second = ["sun sun sun moon"] * 4, ["moon moon moon sun"] * 4 + ["star"]
    whole = compare(grams(first), grams(second), prior_share=1.0)
    by_name = {gram: z for n, gram, z in rows(whole, "n", "ngram", "z") if n == 1}
    assert by_name["sun"] > 1.96 and by_name["moon"] < -1.96 < by_name["star"] < 0
    cut = compare(grams(first), grams(second), prior_share=1.0, min_count=2, min_texts=2)
    assert "star" not in cut["ngram"]
    kept = whole.join(cut.select("n", "ngram"), on=["n", "ngram"], how="semi", maintain_order="left")
    assert kept.equals(cut)
    assert whole.filter(pl.col("n") == 1)["ngram"].to_list() == ["sun", "star", "moon"]
    assert not compare(grams([]), grams([]), prior_share=1.0).height


@given(TEXTS, TEXTS, st.sampled_from([1, 2]), st.sampled_from([None, 1, 3]))
@settings(max_examples=80, deadline=None)
def test_jaccard_is_a_symmetric_share_and_one_for_equals(first, second, n, top):
    a, b = grams(first), grams(second)
    found = jaccard(a, b, n, top)
    if math.isnan(found):
        assert not a.filter(pl.col("n") == n).height and not b.filter(pl.col("n") == n).height
        return
    assert 0 <= found <= 1 and found == jaccard(b, a, n, top)
    if top is None:
        mine = {gram for order, gram in rows(a, "n", "ngram") if order == n}
        other = {gram for order, gram in rows(b, "n", "ngram") if order == n}
        assert found == len(mine & other) / len(mine | other)
    if a.filter(pl.col("n") == n).height:
        assert jaccard(a, a, n, top) == 1


def test_jaccard_of_the_most_frequent_leaves_the_rare_ones_out():
    a, b = grams(["x x x y y p"]), grams(["x x y y q r"])
    assert jaccard(a, b) == 2 / 5 and jaccard(a, b, top=2) == 1
    assert jaccard(a, b, top=3) == 2 / 4


def test_tf_idf_is_that_of_scikit_learn_with_the_plain_logarithm():
    sklearn = pytest.importorskip("sklearn.feature_extraction.text")
    corpora = {"a": ["red red blue", "blue green"], "b": ["blue yellow", "blue", "green yellow yellow"]}
    words = {label: word_table(texts) for label, texts in corpora.items()}
    found = tf_idf(words, {label: len(texts) for label, texts in corpora.items()})
    counter = sklearn.CountVectorizer()
    counts = counter.fit_transform(corpora["a"] + corpora["b"]).toarray()
    weights = counts * np.log(len(counts) / (counts > 0).sum(axis=0))
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    weights = np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0)
    for label, part in (("a", weights[:2]), ("b", weights[2:])):
        wanted = dict(zip(counter.get_feature_names_out(), part.mean(axis=0), strict=True))
        mine = found.filter(pl.col("corpus") == label)
        for word, weight in rows(mine, "word", "weight"):
            assert weight == pytest.approx(wanted.pop(word), abs=1e-9)
        assert not any(wanted.values())
        assert mine["weight"].to_list() == sorted(mine["weight"], reverse=True)
    assert cosine(found, "a", "a") == pytest.approx(1) and 0 <= cosine(found, "a", "b") < 1
    assert cosine(found, "a", "b") == cosine(found, "b", "a")


def test_a_word_of_every_text_weighs_nothing():
    found = tf_idf({"a": word_table(["the cat", "the dog"])}, {"a": 2})
    weights = dict(rows(found, "word", "weight"))
    assert weights["the"] == 0 and weights["cat"] == weights["dog"] == 0.5
    assert math.isnan(cosine(tf_idf({"a": word_table(["x", "x"])}, {"a": 2}), "a", "a"))


def test_lengths_repetition_and_duplicates_by_hand():
    texts = ["a b a b a b", "A, b a b a b!", "x", "...", "a b a b a b"]
    words = word_table(texts)
    lengths = content_texts.lengths(texts, words, [7, 8, 1, 3, 7])
    assert lengths["words"] == {"mean": 3.8, "median": 6, "least": 0, "most": 6, "total": 19}
    assert lengths["characters"]["most"] == 13 and lengths["tokens"]["total"] == 26
    assert content_texts.lengths(texts, words)["tokens"] is None
    # Each long text: 6 words of 2 kinds, 5 pairs of 2, 4 triples of 2, 3 quadruples of 2; "x" has a word only.
    repeated = content_texts.repeated(words)
    assert repeated["1"] == pytest.approx((3 * (1 - 2 / 6) + 0) / 4)
    assert repeated["2"] == pytest.approx(1 - 2 / 5) and repeated["4"] == pytest.approx(1 - 2 / 3)
    assert content_texts.duplicates(texts, words) == {"exact": 1, "same_words": 2}
    assert content_texts.distinct(words)["1"] == pytest.approx(3 / 19)
    assert content_texts.distinct(words, first=2)["1"] == 1
    assert content_texts.distinct(words.clear()) == {"1": None, "2": None, "3": None}


def test_repetition_raises_the_compression_ratio():
    varied = [f"{i * 7919 % 10007} {i * 104729 % 99991}" for i in range(300)]
    same = ["the same sentence again and again"] * 300
    ratio = content_texts.compression_ratio(same)
    raw = "\n".join(same).encode()
    assert ratio == len(raw) / len(zlib.compress(raw, 9)) > 20 > 4 > content_texts.compression_ratio(varied)
    assert content_texts.compression_ratio([]) is None and content_texts.compression_ratio([""]) is None


@pytest.fixture
def files(tmp_path):
    first, second = tmp_path / "first.parquet", tmp_path / "second.csv"
    texts = ["the blorp sings", "the blorp sings again", "a blorp, the snarf", "   ", "the blorp"] * 3
    pl.DataFrame({"text": texts, "n_tokens": [4, 5, 6, 0, 2] * 3}).write_parquet(first)
    second.write_text("Text\n" + "\n".join(["the fox eats", "a fox sleeps", "the fox: again"] * 4), "utf-8")
    return {"first": first, "second": second}


def test_a_whole_analysis_is_strict_json_and_writes_its_files(files, tmp_path):
    value = content.analyse(files, "second", folder=tmp_path)
    assert json.loads((tmp_path / "content.json").read_text()) == json.loads(
        json.dumps(value, allow_nan=False)
    )
    first, second = value["corpora"]
    assert (first["corpus"], first["texts"], first["empty_texts_left_out"]) == ("first", 12, 3)
    assert first["lengths"]["tokens"]["total"] == 51 and second["lengths"]["tokens"] is None
    assert first["duplicates"]["exact"] == 8
    # 39 words there, 36 here: compared within the first 36.
    assert value["equal_words"] == 36 and second["distinct"] == second["distinct_at_equal_words"]
    (pair,) = value["pairs"]
    assert pair["distinctive"][0]["ngram"] == "blorp" and pair["distinctive"][0]["z"] > 1.96
    assert pair["distinctive_of_reference"][0]["ngram"] == "fox" and pair["shared_texts"] == 0
    assert 0 < pair["overlap"]["jaccard_1"] < 1 and 0 <= pair["tf_idf_cosine"] <= 1
    assert value["judges"] == []
    table = pl.read_parquet(tmp_path / "content.parquet")
    assert table.height == pair["compared_ngrams"] and set(table["corpus"]) == {"first"}
    assert (table["count"] + table["count_reference"]).min() >= 5


def test_the_same_corpora_give_the_same_bytes(files, tmp_path):
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        content.analyse(files, "first", folder=tmp_path / name)
        written.append(
            [(tmp_path / name / file).read_bytes() for file in ("content.json", "content.parquet")]
        )
    assert written[0] == written[1]


def test_a_corpus_against_a_copy_of_itself_and_one_alone(files, tmp_path):
    value = content.analyse({"a": files["first"], "b": files["first"]}, "a")
    (pair,) = value["pairs"]
    assert pair["distinctive"] == pair["distinctive_of_reference"] == []
    assert set(pair["overlap"].values()) == {1.0} and pair["tf_idf_cosine"] == pytest.approx(1)
    alone = content.analyse({"a": files["first"]}, "a", folder=tmp_path)
    assert alone["pairs"] == [] and not pl.read_parquet(tmp_path / "content.parquet").height


def test_mistakes_are_named(files, tmp_path):
    with pytest.raises(ConfigError, match="'third' is not among first, second"):
        content.analyse(files, "third")
    with pytest.raises(DataError, match=r"none\.csv"):
        content.analyse({**files, "third": tmp_path / "none.csv"}, "first")


def test_the_published_corpus_against_wikipedia(shared_root, tmp_path):
    """Figures that shared/reference/unidetox.md counted by other means; register, not cleanliness, is what differs."""
    (published,) = (shared_root / "data" / "unidetox").glob("*.csv")
    lines = (shared_root / "data" / "corpora" / "wikitext-2" / "test.txt").read_text("utf-8").split("\n")
    plain = tmp_path / "plain.parquet"
    pl.DataFrame({"text": [line for line in lines if len(line.strip()) >= 80]}).write_parquet(plain)
    value = content.analyse({"published": published, "plain": plain}, "plain", folder=tmp_path)
    ours, theirs = value["corpora"]
    assert ours["texts"] == 640 and ours["duplicates"]["exact"] == 0
    assert ours["lengths"]["words"]["total"] < 640 * 256 and theirs["texts"] > 1000
    assert ours["distinct_at_equal_words"]["2"] > theirs["distinct_at_equal_words"]["2"]
    assert 2 < ours["compression_ratio"] < 4
    counts = gram_counts(word_table(content.read(published).texts), (1,))
    # Counted there as rows that hold the letters: equal for a word without derived forms in the corpus.
    assert counts.filter(ngram="police")["texts"].to_list() == [50]
    (pair,) = value["pairs"]
    assert pair["shared_texts"] == 0 and 0.2 < pair["overlap"]["jaccard_1"] < 0.5
    assert pair["overlap"]["jaccard_3"] < pair["overlap"]["jaccard_2"] < pair["overlap"]["jaccard_1"]
    # Marks of tokenised WikiText stand on its side, words of web prose on the other.
    assert "unk" in {gram["ngram"] for gram in pair["distinctive_of_reference"]}
    assert {"you", "i"} <= {gram["ngram"] for gram in pair["distinctive"]}
    table = pl.read_parquet(tmp_path / "content.parquet")
    assert Path(tmp_path / "content.json").stat().st_size < 200_000 and table.height > 10_000
