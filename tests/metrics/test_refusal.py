"""The refusal rate: what counts as a refusal, and what a cell's rate is made of."""

import polars as pl
import pytest
from stored_tables import info, make_tables

from unidetox_ray.metrics.refusal import PHRASES, refuses
from unidetox_ray.report import build
from unidetox_ray.results import ResultSettings, cell_results, write_results

SETTINGS = ResultSettings(scorer="main", judge="judge", bootstrap_samples=500)
CELLS = (info("base", "base"), info("ours"))


@pytest.mark.parametrize(
    "text",
    [
        " and said: I cannot help with that.",
        "I CAN’T\nassist you here",
        "i'm  sorry, but I can't",
        "well, as an AI I have no view",
        *PHRASES,
    ],
)
def test_a_refusal_is_found(text):
    assert refuses(pl.Series([text])).to_list() == [True]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "as an aid to memory",
        "the ski cannot help with balance",
        "I cannot helpfully say",
        "he was sorry, but he could not come",
        "a bridge that I cannot see",
        "nobody can assist them",
        "as another language models its verbs",
    ],
)
def test_ordinary_text_is_none(text):
    assert refuses(pl.Series([text])).to_list() == [False]


def test_nothing_is_neither():
    assert refuses(pl.Series([None, "I must decline."], dtype=pl.String)).to_list() == [None, True]


def test_phrases_are_lower_case_and_stand_once():
    assert len(set(PHRASES)) == len(PHRASES)
    assert all(phrase == " ".join(phrase.lower().split()) for phrase in PHRASES)


@pytest.fixture(scope="module")
def tables():
    """The second cell refuses every fourth continuation of the first twelve of its 24 prompts."""
    scores, generations, prompts = make_tables(["base", "ours"])
    number = pl.col("prompt_id").str.slice(1).cast(pl.Int64)
    refused = (pl.col("cell") == "ours") & (pl.col("sample") == 0) & (number < 12)
    text = pl.when(refused).then(pl.lit("I’m sorry, but I cannot say that")).otherwise("text")
    return scores, generations.with_columns(text=text), prompts


def test_a_cells_rate_is_the_mean_over_prompts_with_an_interval(tables):
    base, ours = (
        row["metrics"]["refusal_rate"] for row in cell_results(*tables, cells=CELLS, settings=SETTINGS)
    )
    assert base["value"] == 0 and base["ci_low"] == 0 < base["ci_high"] < 0.2  # the rule of three, not [0, 0]
    assert ours["value"] == pytest.approx(0.125) == ours["diff"]
    assert ours["ci_low"] < 0.125 < ours["ci_high"] and ours["diff_low"] > 0
    assert ours["n"] == 24 and ours["failed"] == 0


def test_what_failed_is_not_counted_as_a_continuation_that_goes_on(tables):
    scores, generations, prompts = tables
    gone = (pl.col("cell") == "ours") & (pl.col("sample") > 0)
    broken = generations.with_columns(
        error=pl.when(gone).then(pl.lit("timeout")), text=pl.when(~gone).then("text")
    )
    settings = ResultSettings(**{**vars(SETTINGS), "max_failed_share": 1.0})
    ours = cell_results(scores, broken, prompts, cells=CELLS, settings=settings)[1]["metrics"]["refusal_rate"]
    assert ours["value"] == pytest.approx(0.5) and ours["failed"] == 144
    withheld = cell_results(scores, broken, prompts, cells=CELLS, settings=SETTINGS)[1]["metrics"][
        "refusal_rate"
    ]
    assert withheld["value"] is None and "144 of 192 continuations failed" in withheld["reason"]


def test_the_report_shows_it(tables, tmp_path):
    write_results(cell_results(*tables, cells=CELLS, settings=SETTINGS), tmp_path)
    markdown = build(tmp_path).markdown.read_text(encoding="utf-8").replace("\\", "")
    section = markdown.partition("## Further metrics\n")[2].partition("\n## ")[0]
    table = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line[:1] == "|"]
    place = table[0].index("refusal_rate")
    assert next(line for line in table if line[1:] and "unidetox" in " ".join(line))[place].startswith(
        "0.125"
    )
