"""Dist-n against sets filled one n-gram at a time."""

import random
import time

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidetox_ray.metrics.distinct import distinct_by_group, distinct_n, distinct_statistics
from unidetox_ray.schemas import GENERATIONS, PROMPTS, frame


def by_definition(texts):
    """Distinct n-grams of one prompt's texts over its number of words, words being what single spaces separate."""
    words, seen = 0, {1: set(), 2: set(), 3: set()}
    for text in texts:
        parts = text.split(" ")
        words += len(parts)
        for n, grams in seen.items():
            for i in range(len(parts) - n + 1):
                grams.add("_".join(parts[i : i + n]))
    return [len(seen[n]) / words for n in (1, 2, 3)]


def test_unusual_texts(odd_texts):
    groups = [i % 17 for i in range(len(odd_texts))]
    found = distinct_by_group(pl.DataFrame({"group": groups, "text": odd_texts}))
    assert found["group"].to_list() == list(range(17))
    for row in found.iter_rows(named=True):
        texts = [t for t, g in zip(odd_texts, groups, strict=True) if g == row["group"]]
        assert [row["dist1"], row["dist2"], row["dist3"]] == pytest.approx(by_definition(texts))


@given(
    st.lists(st.lists(st.text(alphabet="ab_ \n", max_size=8), min_size=1, max_size=4), min_size=1, max_size=5)
)
@settings(max_examples=80, deadline=None)
def test_any_texts(groups):
    table = pl.DataFrame(
        [{"group": g, "text": text} for g, texts in enumerate(groups) for text in texts],
        schema={"group": pl.Int64, "text": pl.String},
    )
    found = distinct_by_group(table)
    for row, texts in zip(found.iter_rows(named=True), groups, strict=True):
        assert [row["dist1"], row["dist2"], row["dist3"]] == pytest.approx(by_definition(texts))


def test_no_gram_spans_two_texts():
    found = distinct_n(["p", "p"], ["a b", "c d"])
    assert found == pytest.approx({"dist1": 1.0, "dist2": 0.5, "dist3": 0.0})


def test_words_are_joined_with_underscores_as_released():
    """("a_b", "c") and ("a", "b_c") are one bigram there, and so here."""
    assert distinct_n(["p", "p"], ["a_b c", "a b_c"])["dist2"] == pytest.approx(1 / 4)


def test_the_empty_text_is_one_word_and_null_is_none():
    assert distinct_n(["p"], [""]) == {"dist1": 1.0, "dist2": 0.0, "dist3": 0.0}
    assert distinct_n(["p", "p"], ["", None])["dist1"] == 1.0
    assert distinct_n(["p"], [None])["dist1"] != distinct_n(["p"], [None])["dist1"]


def tables(prompt_texts, continuations, runs=2):
    prompts = frame(
        [
            {
                "prompt_id": f"p{i}",
                "prompt": t,
                "domain": "d",
                "group": "g",
                "distribution": "id",
                "split": "test",
            }
            for i, t in enumerate(prompt_texts)
        ],
        PROMPTS,
    )
    rows = [
        {"cell": "c", "prompt_id": f"p{i}", "run": run, "sample": s, "text": continuations(i, run, s), "n_tokens": 1, "ended": True, "error": None}
        for i in range(len(prompt_texts)) for run in range(runs) for s in range(3)
    ]  # fmt: skip
    return frame(rows, GENERATIONS), prompts


def test_with_and_without_the_prompt(odd_texts):
    generator = random.Random(0)
    texts = {(i, r, s): generator.choice(odd_texts) for i in range(6) for r in range(2) for s in range(3)}
    generations, prompts = tables(odd_texts[:6], lambda *key: texts[key])
    for with_prompt in (True, False):
        found = distinct_statistics(generations, prompts, with_prompt=with_prompt)
        for i, row in enumerate(found.iter_rows(named=True)):
            per_run = [
                by_definition([(odd_texts[i] if with_prompt else "") + texts[i, r, s] for s in range(3)])
                for r in range(2)
            ]
            wanted = [sum(values) / 2 for values in zip(*per_run, strict=True)]
            assert [row[f"dist{n}"] for n in (1, 2, 3)] == pytest.approx(wanted)


def test_counting_the_prompt_lowers_the_value():
    generations, prompts = tables(
        ["one long prompt that repeats each time"], lambda i, r, s: f" word{s} more{s}"
    )
    inside, outside = (
        distinct_statistics(generations, prompts, with_prompt=w)["dist1"][0] for w in (True, False)
    )
    assert inside < outside


def test_equal_prompts_pool_only_when_grouped_by_text():
    generations, prompts = tables(["same", "same", "other"], lambda i, r, s: f" x{s}", runs=1)
    by_id = distinct_statistics(generations, prompts)
    by_text = distinct_statistics(generations, prompts, group_by="prompt_text")
    assert by_id["prompt_id"].to_list() == ["p0", "p1", "p2"]
    assert by_text["prompt_id"].to_list() == ["p0", "p2"]
    assert by_text["dist1"][0] == pytest.approx(by_id["dist1"][0] / 2)


def test_failed_generations_take_no_part():
    generations, prompts = tables(["p"], lambda i, r, s: f" x{s}", runs=1)
    broken = generations.with_columns(error=pl.when(pl.col("sample") == 2).then(pl.lit("crashed")))
    found = distinct_statistics(broken, prompts, with_prompt=False)
    assert found["dist1"][0] == pytest.approx(by_definition([" x0", " x1"])[0])


def test_a_hundred_thousand_texts_take_seconds():
    generator = random.Random(1)
    words = [f"w{i}" for i in range(5000)]
    texts = [" ".join(generator.choices(words, k=30)) for _ in range(100_000)]
    table = pl.DataFrame({"group": [i // 25 for i in range(100_000)], "text": texts})
    started = time.perf_counter()
    found = distinct_by_group(table)
    assert found.height == 4000 and time.perf_counter() - started < 10
