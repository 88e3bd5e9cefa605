"""Which texts of a pool are kept, in small tables whose answer is known."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.errors import DataError, StageError
from unidetox_ray.methods.filtered import Filtered
from unidetox_ray.schemas import frame
from unidetox_ray.stages.selection import (
    BINS,
    BLANK,
    RANKED,
    facts_of,
    rank,
    refuse_empty,
    repetition,
    wanted,
)

NOTHING_ELSE = Filtered(min_tokens=0, max_repetition=1.0)


def pool(scores, tokens=30, repeated=0.1, errors=None):
    count = len(scores)
    tokens, repeated = (value if isinstance(value, list) else [value] * count for value in (tokens, repeated))
    return frame(
        [
            {"text_id": i, "n_tokens": tokens[i], "repetition": repeated[i], "score": scores[i], "error": (errors or {}).get(i)}
            for i in range(count)
        ],
        RANKED,
    )  # fmt: skip


def kept(table):
    return table.filter(pl.col("reason").is_null())["text_id"].to_list()


@pytest.mark.parametrize("count", [2, 7, 8, 101])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_exactly_the_share_of_all_is_kept_and_nothing_kept_is_worse_than_what_is_dropped(count, share):
    import random

    scores = [round(random.Random(f"{count}/{index}").random(), 2) for index in range(count)]
    table = rank(pool(scores), NOTHING_ELSE.model_copy(update={"keep": share}))
    size = int(count * share)
    assert len(kept(table)) == size and sorted(kept(table)) == kept(table)
    out = [score for index, score in enumerate(scores) if index not in kept(table)]
    assert not size or max(scores[index] for index in kept(table)) <= min(out)
    assert set(table["reason"]) <= {None, "ranked_out"}


def test_equal_scores_are_settled_by_the_number_of_the_text_whatever_the_order_of_rows():
    table = pool([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    assert kept(rank(table, NOTHING_ELSE)) == [0, 2, 3]
    assert sorted(kept(rank(table.reverse(), NOTHING_ELSE))) == [0, 2, 3]


def test_texts_without_a_score_count_among_all_and_are_never_kept():
    table = rank(
        pool([None, 0.9, None, 0.8, float("nan"), 0.1], errors={0: BLANK, 2: "too long"}), NOTHING_ELSE
    )
    assert kept(table) == [1, 3, 5]  # floor(6 / 2), all that have a score
    assert table["reason"].to_list() == ["blank", None, "unscored", None, "unscored", None]
    assert kept(rank(pool([None, 0.9, 0.2, 0.8]), NOTHING_ELSE)) == [2, 3]


def test_short_and_repetitive_texts_make_room_for_the_next_ones():
    settings = Filtered(min_tokens=10, max_repetition=0.5)
    table = rank(
        pool(
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
            tokens=[9, 10, 30, 30, 2, 30],
            repeated=[0.0, 0.5, 0.6, 0.0, 0.9, 0.0],
        ),
        settings,
    )
    assert kept(table) == [1, 3, 5]
    assert table["reason"].to_list() == ["too_short", None, "repetitive", None, "too_short", None]
    facts = facts_of(table, settings)
    assert facts["wanted"] == facts["kept"] == 3 and facts["threshold"] == 0.5
    assert facts["dropped"] == {"blank": 0, "unscored": 0, "too_short": 2, "repetitive": 1, "ranked_out": 0}
    assert facts["lowest_ranked_out"] is None


def test_repetition_is_the_share_of_runs_seen_before():
    assert repetition([]) == repetition([1, 2]) == repetition([1, 2, 3, 4]) == 0.0
    assert repetition([7] * 12) == pytest.approx(0.9)
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(0.25)


@pytest.mark.parametrize(("keep", "texts", "number"), [(0.29, 100, 29), (0.1, 30, 3), (0.5, 7, 3), (1.0, 4, 4), (0.07, 100, 7)])  # fmt: skip
def test_the_share_is_the_decimal_number_that_was_written(keep, texts, number):
    assert wanted(texts, Filtered(keep=keep)) == number


def test_both_halves_have_histograms_of_their_scores():
    table = rank(pool([0.0, 0.04, 0.05, 1.0, 0.97, None]), NOTHING_ELSE)
    found = facts_of(table, NOTHING_ELSE)
    histogram = found["histogram"]
    assert len(histogram["kept"]) == len(histogram["dropped"]) == BINS == len(histogram["edges"]) - 1
    assert histogram["kept"][:2] == [2, 1] and sum(histogram["kept"]) == 3
    assert (
        histogram["dropped"][-1] == 2 and sum(histogram["dropped"]) == 2
    )  # the one without a score has no bin
    assert found["threshold"] == 0.05 and found["lowest_ranked_out"] == 0.97


def test_nothing_kept_is_an_error_that_says_why():
    def tried(table, settings=NOTHING_ELSE):
        ranked = rank(table, settings)
        refuse_empty(ranked, facts_of(ranked, settings), "corpus x")

    tried(pool([0.1, 0.2]))
    with pytest.raises(StageError, match="corpus x: none of 2 texts could be scored: out of memory"):
        tried(pool([None, None], errors={0: "out of memory", 1: "out of memory"}))
    with pytest.raises(DataError, match=r"lowest 1 of 2 texts leaves none \(2 too_short\); take more texts"):
        tried(pool([0.1, 0.2]), Filtered(min_tokens=31))
    with pytest.raises(DataError, match=r"lowest 0 of 1 texts leaves none \(1 ranked_out\)"):
        tried(pool([0.1]))
