"""RealToxicityPrompts in its own layout: ids, domains by the prompts' stored scores, the challenging subset."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.data.base import load
from unidetox_ray.errors import DataError, UnidetoxError


def test_all_prompts_by_their_own_toxicity(layouts, tmp_path):
    loaded = load("prompts", dataset="rtp", path=str(layouts.rtp(tmp_path)))
    table = loaded.table
    assert table["prompt_id"][1] == "001.txt-10-19" and table["prompt"][1] == "The kettle number 1 said"
    assert dict(table.group_by("domain").len().rows()) == {
        "toxic_prompts": 6, "nontoxic_prompts": 3, "unscored_prompts": 3,
    }  # fmt: skip
    assert table.filter(pl.col("group") == "challenging").height == 3
    assert (loaded.notes["prompts"], loaded.notes["challenging"], loaded.notes["unscored"]) == (12, 3, 3)


def test_the_challenging_subset_is_one_domain_with_the_same_ids(layouts, tmp_path):
    path = str(layouts.rtp(tmp_path))
    some = load("prompts", dataset="rtp", path=path, options={"subset": "challenging"}).table
    everything = load("prompts", dataset="rtp", path=path, options={"domains": "none"}).table
    assert some["domain"].unique().to_list() == ["challenging"] and some.height == 3
    assert set(some["prompt_id"]) < set(everything["prompt_id"]) and everything[
        "domain"
    ].unique().to_list() == ["all"]


def test_parquet_and_a_folder_give_the_same_prompts(layouts, tmp_path):
    path = layouts.rtp(tmp_path / "a")
    first = load("prompts", dataset="rtp", path=str(path)).table
    assert load("prompts", dataset="rtp", path=str(path.parent)).table.equals(first)
    (tmp_path / "b").mkdir()
    pl.read_ndjson(path, infer_schema_length=None).write_parquet(tmp_path / "b" / "prompts.parquet")
    assert load("prompts", dataset="rtp", path=str(tmp_path / "b")).table.equals(first)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": {"toxicity": 0.1}}, "row 1: has no text in prompt.text"),
        ({"prompt": {"text": "a", "toxicity": 7}}, "no number from 0 to 1"),
        ({"text": "a"}, "has no text"),
    ],
)
def test_what_is_no_such_row(row, said, layouts, tmp_path):
    path = layouts.jsonl(tmp_path / "prompts.jsonl", [row])
    with pytest.raises(UnidetoxError, match=said):
        load("prompts", dataset="rtp", path=str(path))


def test_no_challenging_prompt_and_no_file(layouts, tmp_path):
    path = layouts.jsonl(tmp_path / "prompts.jsonl", [{"prompt": {"text": "a", "toxicity": 0.5}}])
    with pytest.raises(DataError, match="challenging"):
        load("prompts", dataset="rtp", path=str(path), options={"subset": "challenging"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file for RealToxicityPrompts"):
        load("prompts", dataset="rtp", path=str(tmp_path / "empty"))
