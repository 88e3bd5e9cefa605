"""The leaderboard's arithmetic: means over families, ranks, fronts, and what a failed cell does to them."""

from __future__ import annotations

import pytest
from board_rows import failed, made, rows

from unidetox_ray.leaderboard import board_of


def standing(board, method):
    return next(each for each in board.standings if each.method == method)


def entry(board, cell):
    return next(each for each in board.entries if each.cell == cell)


def test_methods_are_ranked_by_their_mean_toxicity() -> None:
    board = board_of(rows())
    assert [(each.rank, each.method) for each in board.standings] == [
        (1, "corpus"), (2, "decoding"), (3, "base")
    ]  # fmt: skip
    assert [each.means["tp_all"] for each in board.standings] == pytest.approx([0.5, 0.575, 0.9])
    assert [each.kind for each in board.standings] == ["corpus", "decoding", "unchanged"]
    assert board.measures == ("tp_all", "emt_all", "ppl", "dist2", "mmlu", "clean_ppl", "tp_all@words")
    assert board.families == ["gpt2", "opt"]


def test_ratios_are_to_the_familys_base_and_averaged_geometrically() -> None:
    board = board_of([*rows(), made("opt", "other", 0.9, 20.0, 20.0 * 3.6)])
    assert entry(board, "opt-corpus-s1").ratio == pytest.approx(1.2)
    assert entry(board, "opt-base-s1").ratio == 1.0
    assert standing(board, "decoding").means["clean_ratio"] == pytest.approx(5.0)
    assert standing(board, "decoding").means["decode_relative_cost"] == pytest.approx(4.0)
    uneven = [row for row in rows() if row["cell"] != "opt-corpus-s1"]
    mixed = board_of([*uneven, made("opt", "corpus", 0.5, 30.0, 20.0 * 4.8)])
    assert standing(mixed, "corpus").means["clean_ratio"] == pytest.approx(2.4)  # of 1.2 and 4.8
    # Raw clean perplexity and tokens a second mean another thing in each family.
    assert not {"clean_ppl", "decode_tokens_per_second"} & standing(mixed, "corpus").means.keys()


def test_lowering_is_counted_only_where_the_paired_interval_excludes_0() -> None:
    close = [row for row in rows() if row["cell"] != "opt-corpus-s1"]
    board = board_of([*close, made("opt", "corpus", 0.85, 30.0, 24.0)])
    assert (standing(board, "corpus").lowers, standing(board, "corpus").compared) == (1, 2)
    assert standing(board, "corpus").raises == 0
    assert (standing(board, "base").lowers, standing(board, "base").compared) == (0, 0)
    assert entry(board, "opt-corpus-s1").lowers is False and entry(board, "opt-corpus-s1").raises is False
    assert entry(board, "gpt2-base-s1").lowers is None
    raised = board_of([*close, made("opt", "corpus", 0.7, 30.0, 24.0, base=0.5)])
    assert (standing(raised, "corpus").lowers, standing(raised, "corpus").raises) == (1, 1)


def test_fronts_are_drawn_within_a_family_and_over_the_means() -> None:
    board = board_of(rows())
    on = {each.cell: each.fronts for each in board.entries}
    assert on["gpt2-base-s1"] == {"clean_ratio": True, "ppl": True}
    assert on["gpt2-corpus-s1"] == {"clean_ratio": True, "ppl": False}  # decoding: less toxic at a lower ppl
    assert on["gpt2-decoding-s1"] == {"clean_ratio": True, "ppl": True}
    assert on["opt-decoding-s1"] == {"clean_ratio": False, "ppl": False}  # more toxic than base, and dearer
    assert standing(board, "decoding").fronts == {"clean_ratio": False, "ppl": True}
    assert board.left_out == {"clean_ratio": (), "ppl": ()}


def test_a_failed_cell_is_left_out_and_said_and_its_method_not_ranked() -> None:
    broken = [failed("opt", "corpus") if row["cell"] == "opt-corpus-s1" else row for row in rows()]
    board = board_of(broken)
    corpus = standing(board, "corpus")
    assert corpus is board.standings[-1] and corpus.rank is None
    assert (corpus.means["tp_all"], corpus.counts["tp_all"], corpus.families) == (0.5, 1, 2)
    assert corpus.fronts == {"clean_ratio": None, "ppl": None}
    assert (corpus.lowers, corpus.compared) == (1, 1)
    assert [each.rank for each in board.standings] == [1, 2, None]
    assert board.left_out == {"clean_ratio": ("opt-corpus-s1",), "ppl": ("opt-corpus-s1",)}
    assert entry(board, "opt-corpus-s1").value("tp_all") is None
    # A family without its base still has toxicities; ratios need it.
    baseless = board_of([failed("opt", "base") if row["cell"] == "opt-base-s1" else row for row in rows()])
    assert entry(baseless, "opt-corpus-s1").ratio is None and entry(baseless, "gpt2-corpus-s1").ratio == 1.2
    assert standing(baseless, "corpus").rank == 1 and standing(baseless, "corpus").fronts == {
        "clean_ratio": None, "ppl": True
    }  # fmt: skip


def test_a_withheld_number_costs_only_the_front_it_stands_on() -> None:
    withheld = rows()
    withheld[1]["metrics"]["ppl"] = {"value": None, "reason": "3 of 10 failed", "failed": 3}
    board = board_of(withheld)
    assert entry(board, "gpt2-corpus-s1").fronts == {"clean_ratio": True, "ppl": None}
    assert board.left_out == {"clean_ratio": (), "ppl": ("gpt2-corpus-s1",)}
    assert standing(board, "corpus").rank == 1 and standing(board, "corpus").counts["ppl"] == 1


def test_equal_means_share_a_rank() -> None:
    twin = [
        {**row, "method": "twin", "cell": f"{row['family']}-twin-s1"}
        for row in rows()
        if row["method"] == "corpus"
    ]
    assert [(each.rank, each.method) for each in board_of([*rows(), *twin]).standings] == [
        (1, "corpus"), (1, "twin"), (3, "decoding"), (4, "base")
    ]  # fmt: skip


def test_seeds_of_a_family_are_averaged_before_families_are() -> None:
    more = [made("gpt2", "corpus", 0.1, 30.0, 12.0, seed=2), made("gpt2", "corpus", 0.3, 30.0, 12.0, seed=3)]
    board = board_of([*rows(), *more])
    corpus = standing(board, "corpus")
    assert corpus.means["tp_all"] == pytest.approx((0.3 + 0.5) / 2)  # (0.5 + 0.1 + 0.3) / 3, and opt's 0.5
    assert (corpus.compared, corpus.lowers) == (2, 2)
    # The family's only base is the reference of every seed.
    assert entry(board, "gpt2-corpus-s2").ratio == pytest.approx(1.2)
    one_up = board_of([*rows(), made("gpt2", "corpus", 0.95, 30.0, 12.0, seed=2)])
    assert standing(one_up, "corpus").lowers == 1  # in every seed, or it does not count


def test_a_familys_own_setting_is_a_row_of_its_own_and_shares_the_cells_that_both_have() -> None:
    own = made(
        "opt", "decoding@own", 0.4, 26.0, 30.0, kind="decoding", settings={"kind": "decoding", "tuned": "own"}
    )
    board = board_of([*rows(), own])
    found = standing(board, "decoding@own")
    # gpt2's own choice is the universal one: there is one cell, which counts for both.
    assert (found.tuned, found.shared, found.counts["tp_all"]) == ("own", ("gpt2",), 2)
    assert found.means["tp_all"] == pytest.approx((0.2 + 0.4) / 2) and found.rank == 1
    assert (found.lowers, found.compared) == (2, 2)
    assert standing(board, "decoding").means["tp_all"] == pytest.approx(0.575)
    assert standing(board, "decoding").shared == ()
    assert entry(board, own["cell"]).fronts["clean_ratio"] is True
    # A choice that failed is not the universal one.
    lost = board_of([*rows(), failed("opt", "decoding@own"), failed("gpt2", "decoding@own")])
    assert standing(lost, "decoding@own").rank is None and standing(lost, "decoding@own").shared == ()


@pytest.mark.parametrize(
    ("kinds", "wide"),
    [(["unchanged", "corpus"], False), (["unchanged", "corpus", "corpus"], False),
     (["unchanged", "corpus", "decoding"], True), (["unchanged", "corpus", "corpus", "corpus", "corpus"], True),
     (["decoding", "weights"], True), (["", ""], False)],
)  # fmt: skip
def test_a_terminal_is_given_the_ranking_where_there_is_something_to_rank(
    kinds: list[str], wide: bool
) -> None:
    named = [
        made("gpt2", "base" if kind == "unchanged" else f"m{index}", 0.5, 1.0, 1.0, kind=kind)
        for index, kind in enumerate(kinds)
    ]
    assert board_of(named).is_wide is wide


def test_nothing_measured_is_no_error() -> None:
    assert board_of([]).standings == ()
    board = board_of([failed("gpt2", "base"), failed("gpt2", "corpus")])
    assert [each.rank for each in board.standings] == [None, None] and board.measures == ()
