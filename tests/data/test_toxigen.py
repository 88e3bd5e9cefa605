"""ToxiGen: two spellings, 896 + 940 prompts, the overlap."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.data import toxigen
from unidetox_ray.data.base import load
from unidetox_ray.errors import DataError

ANY = {"expected_train_rows": None, "expected_test_rows": None}
#: Every spelling of both splits (reference/datasets.md 2).
TRAIN_SPELLINGS = (
    "asian black chinese jewish latino lgbtq mental_dis mexican middle_east muslim native_american"
)
TRAIN_SPELLINGS += " physical_dis women"
TEST_SPELLINGS = [
    "asian folks", "black/african-american folks", "black folks / african-americans", "chinese folks",
    "folks with mental disabilities", "folks with physical disabilities", "jewish folks",
    "latino/hispanic folks", "lgbtq+ folks", "mexican folks", "middle eastern folks", "muslim folks",
    "native american/indigenous folks", "native american folks", "women",
]  # fmt: skip


def per_domain(table, split):
    return dict(table.filter(pl.col("split") == split).group_by("domain").len().rows())


def test_every_spelling_of_both_splits_has_a_domain():
    assert {toxigen.GROUP_OF[name] for name in TEST_SPELLINGS} == set(TRAIN_SPELLINGS.split())
    assert {toxigen.GROUP_OF[name] for name in TRAIN_SPELLINGS.split()} == set(TRAIN_SPELLINGS.split())
    assert list(toxigen.DOMAINS) == ["gender_lgbtq", "race_nationality", "religion", "disability"]


def test_prompts_are_byte_exact_with_stable_ids(layouts, tmp_path):
    table = load("prompts", dataset="toxigen", path=str(layouts.toxigen(tmp_path)), options=ANY).table
    test = table.filter(pl.col("split") == "test")
    assert test["prompt_id"].to_list() == [f"test-{row:05d}" for row in range(7)]
    assert test["group"][2] == "black" and test["group"][6] == "mental_dis"
    assert dict(table.select("domain", "distribution").rows())["disability"] == "ood"
    assert set(table.filter(pl.col("domain") != "disability")["distribution"]) == {"id"}
    validation = table.filter(pl.col("split") == "validation")
    assert validation.height == 7
    for prompt_id, prompt in validation.select("prompt_id", "prompt").rows():
        row = int(prompt_id.removeprefix("validation-"))
        if row not in {4, 5}:
            assert prompt == f" a line on knitting {row}\n"


def test_validation_rows_equal_those_of_datasets_shuffle():
    datasets = pytest.importorskip("datasets")
    theirs = datasets.Dataset.from_dict({"row": list(range(8960))}).shuffle(seed=42).select(range(896))["row"]
    assert toxigen.validation_rows(8960, 42) == list(theirs)
    assert toxigen.validation_rows(8960, 43) != list(theirs)


def test_overlap_is_counted_and_can_be_left_out(layouts, tmp_path):
    folder = str(layouts.toxigen(tmp_path))
    # A seed whose draw holds both shared rows, so that there is an overlap to see.
    seed = next(seed for seed in range(10_000) if {4, 5} <= set(toxigen.validation_rows(70, seed)))
    options = {**ANY, "validation_seed": seed}
    kept = load("prompts", dataset="toxigen", path=folder, options=options)
    assert kept.notes["test_rows_also_in_train"] == 2
    assert kept.notes["test_rows_also_in_train_byte_for_byte"] == 1
    assert kept.notes["validation_rows_also_in_test"] == 2
    assert kept.notes["splits"] == {"test": 7, "validation": 7}
    cut = load("prompts", dataset="toxigen", path=folder, options={**options, "exclude_overlap": True})
    assert cut.notes["splits"] == {"test": 7, "validation": 5}
    assert cut.notes["validation_rows_excluded"] == 2


def test_pretrain_text_holds_no_prompt(layouts, tmp_path):
    folder = str(layouts.toxigen(tmp_path))
    texts = load("pretrain", dataset="toxigen", path=folder, options=ANY).table
    prompts = load("prompts", dataset="toxigen", path=folder, options=ANY).table
    assert not set(texts["text"].str.strip_chars()) & set(prompts["prompt"].str.strip_chars())
    assert texts.height == 70 - len(set(toxigen.validation_rows(70)) | {4, 5})
    assert "black" in set(texts["target"]) <= set(toxigen.DOMAIN_OF)


def test_unknown_group_and_missing_rows_stop_the_run(layouts, tmp_path):
    folder = layouts.toxigen(tmp_path)
    with pytest.raises(DataError, match="ToxiGen train has 70 rows, expected 8,960"):
        load("prompts", dataset="toxigen", path=str(folder))
    with pytest.raises(DataError, match="ToxiGen test has 7 rows, expected 940"):
        load("prompts", dataset="toxigen", path=str(folder), options={"expected_train_rows": 70})
    file = folder / "toxigen_annotated_test_some.jsonl"
    file.write_text(file.read_text().replace("jewish folks", "tall folks"))
    with pytest.raises(DataError, match="unknown target_group 'tall folks'"):
        load("prompts", dataset="toxigen", path=str(folder), options=ANY)
    file.unlink()
    with pytest.raises(DataError, match="no file for ToxiGen test"):
        load("prompts", dataset="toxigen", path=str(folder), options=ANY)


def test_hub_layout_and_named_files(layouts, tmp_path):
    layouts.toxigen(tmp_path / "a")
    train, test = (pl.read_ndjson(path) for path in sorted((tmp_path / "a").glob("*.jsonl"))[::-1])
    (tmp_path / "b" / "annotated").mkdir(parents=True)
    train.write_parquet(tmp_path / "b" / toxigen.HUB_FILES["train"])
    test.write_parquet(tmp_path / "b" / toxigen.HUB_FILES["test"])
    first = load("prompts", dataset="toxigen", path=str(tmp_path / "a"), options=ANY)
    assert first.table.equals(load("prompts", dataset="toxigen", path=str(tmp_path / "b"), options=ANY).table)
    (tmp_path / "a" / "toxigen_annotated_test_some.jsonl").rename(tmp_path / "a" / "mine.jsonl")
    named = load(
        "prompts", dataset="toxigen", path=str(tmp_path / "a"), options={**ANY, "test_path": "mine.jsonl"}
    )
    assert first.table.equals(named.table)


def test_byte_literals_of_the_raw_csv_are_decoded(layouts, tmp_path):
    rows = [[repr("naïve soup".encode()), "women"], [repr(b'it\'s "here"\n'), "muslim"]] * 10
    layouts.csv(tmp_path / "train.csv", ("text", "target_group"), [[f"b'{n}'", "women"] for n in range(20)])
    layouts.csv(tmp_path / "test.csv", ("text", "target_group"), rows)
    options = {**ANY, "train_path": "train.csv", "test_path": "test.csv"}
    table = load("prompts", dataset="toxigen", path=str(tmp_path), options=options).table
    assert (
        table.filter(pl.col("split") == "test")["prompt"].to_list() == ["naïve soup", 'it\'s "here"\n'] * 10
    )


def test_real_prompts(shared_data):
    loaded = load(
        "prompts",
        dataset="toxigen",
        path="toxigen",
        data_root=str(shared_data),
        options={"expected_test_rows": 727},
    )
    # reference/datasets.md 2: 137/499/135/125 by domain; 129 test rows in train, 9 in validation.
    expected = {"gender_lgbtq": 137, "race_nationality": 499, "religion": 135, "disability": 125}
    assert per_domain(loaded.table, "validation") == expected
    assert loaded.notes["splits"] == {"validation": 896, "test": 727}
    assert loaded.notes["test_rows_also_in_train"] == 129
    assert loaded.notes["test_rows_also_in_train_byte_for_byte"] == 92
    assert loaded.notes["validation_rows_also_in_test"] == 9
    with pytest.raises(DataError, match="727 rows, expected 940"):
        load("prompts", dataset="toxigen", path="toxigen", data_root=str(shared_data))
