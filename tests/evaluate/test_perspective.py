"""Stored Perspective scores: every form they come in, failures as nulls, impossible numbers refused with their row."""

import gzip
import json
import time

import polars as pl
import pytest

from unidetox_ray.errors import DataError
from unidetox_ray.evaluate.perspective import STORED, read_scores


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def api(value):
    return {
        "attributeScores": {
            "TOXICITY": {
                "spanScores": [{"begin": 0, "end": 4, "score": {"value": 0.99, "type": "PROBABILITY"}}],
                "summaryScore": {"value": value, "type": "PROBABILITY"},
            }
        },
        "languages": ["en"],
    }


def test_real_toxicity_prompts_own_lines(tmp_path):
    scores = {"profanity": 0.9, "toxicity": 0.25}
    path = lines(
        tmp_path / "prompts.jsonl",
        {"filename": "f", "begin": 0, "end": 3, "challenging": False, "prompt": {"text": "a b", "toxicity": 0.8}, "continuation": {"text": "c d", **scores}},
        {"prompt": {"text": "e f", "toxicity": None}, "continuation": {"text": "", "toxicity": None}},
    )  # fmt: skip
    found = read_scores(path)
    assert dict(found.schema) == STORED
    assert found["text"].to_list() == ["c d", ""]
    assert found["prompt"].to_list() == ["a b", "e f"]
    assert found["toxicity"].to_list() == [0.25, None]
    assert found["error"].to_list() == [None, "the score is missing"]
    assert found["source"].to_list() == ["prompts", "prompts"]


def test_generations_of_one_prompt_belong_together(tmp_path):
    generations = [{"text": "x", "toxicity": 0.1}, {"text": "y", "toxicity": 1}, {"text": "z"}, "w"]
    path = lines(
        tmp_path / "g.jsonl",
        {"prompt": {"text": "same"}, "generations": generations},
        {"prompt": "same", "generations": [{"text": "v", "perspective": api(0.5)}]},
        {"prompt": "other", "generations": []},
        {
            "prompt": "third",
            "prompt_id": 7,
            "domain": "d",
            "distribution": "ood",
            "generations": [{"text": "u", "TOXICITY": 0.3}],
        },
    )
    found = read_scores(path)
    assert found["toxicity"].to_list() == [0.1, 1.0, None, None, 0.5, 0.3]
    assert found["continuation"].to_list() == [0, 1, 2, 3, 4, 0]
    assert found["row"].to_list() == [1, 1, 1, 1, 2, 4]
    assert found["prompt_id"].n_unique() == 2
    assert found["prompt_id"][5] == "7"
    assert found.row(5, named=True)["domain"] == "d" and found.row(5, named=True)["distribution"] == "ood"
    assert found["error"].to_list() == [None, None, "no score", "no score", None, None]


def test_raw_answers_take_the_summary_and_their_errors_are_failures(tmp_path):
    text = "words of the text"
    path = lines(
        tmp_path / "raw.jsonl",
        api(0.125),
        {"request": {"comment": {"text": text}}, "response": api(0.5)},
        {
            "text": text,
            "response": None,
            "error": {"code": 400, "message": f"quotes {text}", "status": "INVALID_ARGUMENT"},
        },
        {"error": {"code": 429, "message": "quota"}},
        {"response": {"error": {"status": "UNAVAILABLE"}}},
        {"text": text, "toxicity": 0, "error": "timeout"},
        {"text": text, "toxicity": 0.75, "error": None},
        {"response": {"attributeScores": {"INSULT": {"summaryScore": {"value": 0.5}}}}},
    )
    found = read_scores(path)
    assert found["toxicity"].to_list() == [0.125, 0.5, None, None, None, None, 0.75, None]
    assert found["text"].to_list() == [None, text, text, None, None, text, text, None]
    assert found["error"][2] == "the API answered with an error (INVALID_ARGUMENT)"
    assert found["error"][3] == "the API answered with an error (429)"
    assert found["error"][7] == "no score"
    assert not any(text in (error or "") for error in found["error"])
    assert found["prompt_id"].n_unique() == 8


def test_plain_tables_of_every_kind(tmp_path):
    wanted = [0.5, None, 0.0, 1.0]
    csv = tmp_path / "a.csv"
    csv.write_text('text,toxicity\n"a, b",0.5\nNA,\n,0\nnull,1\n')
    tsv = tmp_path / "a.tsv"
    tsv.write_text("text\ttoxicity\na\t0.5\nb\tnan\nc\t0\nd\t1e0\n")
    parquet = tmp_path / "a.parquet"
    pl.DataFrame({"text": list("abcd"), "toxicity": wanted}).write_parquet(parquet)
    single = tmp_path / "b.parquet"
    pl.DataFrame({"text": list("abcd"), "toxicity": pl.Series(wanted, dtype=pl.Float32)}).write_parquet(
        single
    )
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(
        gzip.compress(b"".join(json.dumps({"text": "a", "toxicity": v}).encode() + b"\n" for v in wanted))
    )
    nan = tmp_path / "nan.jsonl"
    nan.write_text(
        '{"text": "a", "toxicity": 0.5}\n{"text": "a", "toxicity": NaN}\n{"text": "a", "toxicity": 0}\n{"text": "a", "toxicity": 1}\n'
    )
    for path in (csv, tsv, parquet, single, packed, nan):
        assert read_scores(path)["toxicity"].to_list() == wanted, path
    assert read_scores(csv)["text"].to_list() == ["a, b", "NA", "", "null"]


@pytest.mark.parametrize(("value", "words"), [
    ("1.01", "row 2.*1.01 is outside"), ("-0.1", "row 2.*outside"), ("37", "row 2.*divide percentages"), ('"high"', "row 2.*'high' is no number"),
    ("true", "row 2.*bool"), ("1e999", "row 2.*outside"), ("[0.1]", "row 2.*list"),
])  # fmt: skip
def test_what_is_no_probability_is_refused_with_file_and_row(tmp_path, value, words):
    path = tmp_path / "scores.jsonl"
    path.write_text(f'{{"text": "a", "toxicity": 0.5}}\n{{"text": "b", "toxicity": {value}}}\n')
    with pytest.raises(DataError, match=words) as error:
        read_scores(path)
    assert "scores.jsonl" in str(error.value)
    nested = tmp_path / "nested.jsonl"
    nested.write_text(
        f'{{"prompt": "p", "generations": [{{"text": "a", "toxicity": 0.1}}]}}\n{{"prompt": "p", "generations": [{{"toxicity": {value}}}]}}\n'
    )
    with pytest.raises(DataError, match=r"row 2, generations\[0\]"):
        read_scores(nested)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.jsonl", '{"text": "a"}\n', "no toxicity score; it holds 'text'"), ("a.csv", "text,toxicity\n", "no rows"), ("a.jsonl", "", "no rows"),
    ("a.jsonl", '{"text": "a", "toxi', "line 1: not JSON"), ("a.txt", "x", "accepted: .jsonl"), ("a.jsonl", "[1]\n", "entry 1"),
    ("a.parquet", "PAR1", "not a readable parquet"),
])  # fmt: skip
def test_files_that_hold_no_scores(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_scores(path)


def test_a_file_of_failures_alone_is_read_and_all_null(tmp_path):
    found = read_scores(
        lines(tmp_path / "a.jsonl", {"text": "a", "error": {"code": 500}}, {"text": "b", "toxicity": None})
    )
    assert found["toxicity"].null_count() == 2
    assert found["error"].null_count() == 0


def test_half_a_surrogate_pair_does_not_end_the_reading(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "\\ud83d", "text": "a\\ude00", "toxicity": 0.5}\n')
    assert read_scores(path)["toxicity"].to_list() == [0.5]


def test_many_rows_take_seconds(tmp_path):
    path = lines(
        tmp_path / "many.jsonl",
        *({"prompt": f"p{i // 25}", "text": f"t{i}", "toxicity": i / 1e5} for i in range(100_000)),
    )
    started = time.monotonic()
    found = read_scores(path)
    assert time.monotonic() - started < 30
    assert found.height == 100_000
    assert found["prompt_id"].n_unique() == 4000
    assert found["continuation"].max() == 24
