"""Files arrive byte for byte, and damaged ones are refused with the place."""

from __future__ import annotations

import json

import polars as pl
import pytest

from unidetox_ray.data import files
from unidetox_ray.data.base import Request
from unidetox_ray.errors import ConfigError, DataError

#: Texts that a careless reader loses or changes.
AWKWARD = [
    "NA", "null", "None", "nan", "NaN", "N/A", "", " ", "0", "1e-5", "true", "a\r\nb", "a\nb", "a\rb",
    "nul\x00here", "😀 e\u0301 \u2028 \u200b", 'he said "hi", and left', " leading and trailing ",
    "tab\there", "#comment", "\\n",
]  # fmt: skip


def read(path):
    return files.read_table(path, Request(path=path, options=None))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_awkward_texts_survive(suffix, layouts, tmp_path):
    path = tmp_path / f"texts{suffix}"
    ids = [str(number) for number in range(len(AWKWARD))]
    if suffix in {".csv", ".tsv"}:
        layouts.csv(path, ("id", "text"), zip(ids, AWKWARD, strict=True), "\t" if suffix == ".tsv" else ",")
    elif suffix == ".parquet":
        pl.DataFrame({"id": ids, "text": AWKWARD}).write_parquet(path)
    else:
        rows = [{"id": number, "text": text} for number, text in zip(ids, AWKWARD, strict=True)]
        path.write_text(json.dumps(rows)) if suffix == ".json" else layouts.jsonl(path, rows)
    assert files.text_column(read(path), "text", "here").to_list() == AWKWARD


def test_jsonl_with_unescaped_line_separator_is_one_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False) + "\r\n", encoding="utf-8", newline=""
    )
    assert read(path)["text"].to_list() == ["a\u2028b\x85c"]


def test_byte_order_mark_is_not_part_of_the_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext\r\nhello\r\n")
    assert read(path)["text"].to_list() == ["hello"]


def test_long_field(tmp_path, layouts):
    text = "word " * 100_000
    assert read(layouts.csv(tmp_path / "a.csv", ("text",), [[text]]))["text"].to_list() == [text]


def test_numbers_of_two_kinds_are_floats(layouts, tmp_path):
    path = layouts.jsonl(tmp_path / "a.jsonl", [{"x": 1}, {"x": 0.5}, {}])
    assert read(path)["x"].to_list() == [1.0, 0.5, None]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"text\ncaf\xe9\n", "not utf-8: byte 0xe9 at offset 8"),
        ("a.jsonl", b'{"text": "\xff"}', "not utf-8: byte 0xff"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"a,b\n1,2\n3\n", "line 3: 1 fields, the header has 2"),
        ("a.csv", b"a,b\n1,2,3\n", "line 2: 3 fields"),
        ("a.csv", b'a,b\n1,"cut off', "unexpected end of data"),
        ("a.csv", b"a,a\n1,2\n", "'a' occurs twice"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1: a JSON object was expected, found list"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "mixes kinds"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "not Unicode"),
        ("a.json", b'{"text": "x"}', "array of objects"),
        ("a.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("a.xlsx", b"PK", "accepted: .csv, .tsv, .jsonl, .json, .parquet"),
    ],
)
def test_damaged_file_is_one_line_with_the_place(name, data, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read(path)
    assert message in str(error.value) and name in str(error.value)
    assert "\n" not in str(error.value)


def test_text_column_names_the_first_row_without_text():
    with pytest.raises(DataError, match="no text in row 2"):
        files.text_column(pl.DataFrame({"text": ["a", None, None]}), "text", "here")
    with pytest.raises(DataError, match="holds Int64, expected text"):
        files.text_column(pl.DataFrame({"text": [1]}), "text", "here")
    with pytest.raises(DataError, match="'text' is missing; it holds 'words'"):
        files.text_column(pl.DataFrame({"words": ["a"]}), "text", "here")


def test_unreadable_file(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        files.read_bytes(tmp_path, Request(path=tmp_path, options=None))


def test_unknown_encoding_is_a_setting_error(tmp_path):
    with pytest.raises(ConfigError, match="unknown encoding 'utf-88'"):
        files.decode(b"x", tmp_path / "a.txt", "utf-88")


def test_find_takes_the_first_name_and_refuses_two_matches(tmp_path):
    for name in ("b.jsonl", "part_1.jsonl", "part_2.jsonl"):
        (tmp_path / name).write_text("{}")
    assert files.find(tmp_path, ["a.jsonl", "b.jsonl"], "it").name == "b.jsonl"
    with pytest.raises(DataError, match=r"more than one file for it: part_1.jsonl, part_2.jsonl"):
        files.find(tmp_path, ["part_*.jsonl"], "it")
    with pytest.raises(DataError, match=r"no file for it; looked for c.jsonl"):
        files.find(tmp_path, ["c.jsonl"], "it")
