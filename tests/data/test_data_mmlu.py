"""MMLU: counts, order, spellings of the answer."""

from __future__ import annotations

import json

import polars as pl
import pytest

from unidetox_ray.data.base import load
from unidetox_ray.errors import DataError

ANY = {"expected": None}


def edit(path, change):
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_dev_then_validation_by_subject_in_source_order(layouts, tmp_path):
    table = load("mmlu", dataset="mmlu", path=str(layouts.mmlu(tmp_path)), options=ANY).table
    assert table["split"].to_list() == ["dev"] * 4 + ["validation"] * 6
    assert table["subject"].to_list()[:4] == ["algebra", "algebra", "zoology", "zoology"]
    assert table["question_id"].to_list()[:4] == ["dev-00001", "dev-00003", "dev-00000", "dev-00002"]
    assert table["choices"][0].to_list() == ["one 0", "two 0", "three 0", "four 0"]
    assert table.filter(pl.col("split") == "validation")["answer"].to_list() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("spell", [str, "ABCD".__getitem__, lambda index: f"choice_{'abcd'[index]}"])
def test_spellings_of_the_answer(spell, layouts, tmp_path):
    folder = layouts.mmlu(tmp_path)
    plain = load("mmlu", dataset="mmlu", path=str(folder), options=ANY).table
    for path in folder.glob("*.jsonl"):
        edit(path, lambda row: row | {"answer": spell(row["answer"])})
    assert plain.equals(load("mmlu", dataset="mmlu", path=str(folder), options=ANY).table)


def test_choices_in_four_columns_and_named_csv_files(layouts, tmp_path):
    plain = load("mmlu", dataset="mmlu", path=str(layouts.mmlu(tmp_path)), options=ANY).table
    for split in ("dev", "validation"):
        lines = (tmp_path / f"mmlu_all_{split}.jsonl").read_text().splitlines()
        rows = [
            [row["question"], row["subject"], *row["choices"], row["answer"]]
            for row in map(json.loads, lines)
        ]
        header = ("question", "subject", "choice_a", "choice_b", "choice_c", "choice_d", "answer")
        layouts.csv(tmp_path / f"my_{split}.csv", header, rows)
    options = {**ANY, "dev_path": "my_dev.csv", "validation_path": "my_validation.csv"}
    assert plain.equals(load("mmlu", dataset="mmlu", path=str(tmp_path), options=options).table)


def test_counts_are_asserted_and_can_be_set(layouts, tmp_path):
    folder = str(layouts.mmlu(tmp_path))
    with pytest.raises(DataError, match="MMLU: 4 dev questions, expected 285"):
        load("mmlu", dataset="mmlu", path=folder)
    right = {"dev": 4, "validation": 6, "subjects": 2}
    assert load("mmlu", dataset="mmlu", path=folder, options={"expected": right}).table.height == 10
    with pytest.raises(DataError, match="MMLU: 2 subjects, expected 3"):
        load("mmlu", dataset="mmlu", path=folder, options={"expected": {"subjects": 3}})
    with pytest.raises(DataError, match="expected has no 'test'"):
        load("mmlu", dataset="mmlu", path=folder, options={"expected": {"test": 3}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "row 1: unknown answer 4"),
        ({"answer": -1}, "unknown answer -1"),
        ({"answer": "E"}, "unknown answer 'E'"),
        ({"answer": True}, "unknown answer True"),
        ({"choices": ["a", "b", "c"]}, "expected 4 choices of text, found 3"),
        ({"subject": "botany"}, "subject 'botany' has validation questions but no dev question"),
    ],
)
def test_bad_rows_are_refused(change, message, layouts, tmp_path):
    folder = layouts.mmlu(tmp_path)
    edit(folder / "mmlu_all_validation.jsonl", lambda row: row | change)
    with pytest.raises(DataError, match=message):
        load("mmlu", dataset="mmlu", path=str(folder), options=ANY)


def test_real_questions(shared_data):
    loaded = load("mmlu", dataset="mmlu", path="mmlu", data_root=str(shared_data))
    assert loaded.notes["splits"] == {"dev": 285, "validation": 1531}
    assert loaded.notes["subjects"] == 57
    per_subject = loaded.table.filter(pl.col("split") == "dev").group_by("subject").len()
    assert set(per_subject["len"]) == {5}
    assert loaded.table["choices"].list.len().unique().to_list() == [4]
    assert set(loaded.table["answer"]) == {0, 1, 2, 3}
