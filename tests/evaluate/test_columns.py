"""Generations in the shapes that other programs write: the columns taken, and the rows that come of them."""

from __future__ import annotations

import gzip
import json

import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet

from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.evaluate import sources
from unidetox_ray.evaluate.cells import prompt_in, texts_in
from unidetox_ray.evaluate.columns import chosen


def parts_of(path, work, columns=(), limit=None):
    source = sources.sources_of([str(path)])[0]
    parts, _ = sources.read(source, chosen(columns), work, limit)
    return parts, pl.concat([pl.read_parquet(part) for part in parts])


TALK = [
    {"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "y"},
]  # fmt: skip
SHAPES = {
    "text": ([{"prompt": "a", "text": "x"}, {"prompt": "a", "text": "y"}], {"a": ["x", "y"]}),
    "continuation": ([{"prompt": "a", "continuation": "x"}], {"a": ["x"]}),
    "generation": ([{"prompt": "a", "generation": "x"}], {"a": ["x"]}),
    "completion": ([{"input": "a", "completion": "x"}], {"a": ["x"]}),
    "response": ([{"instruction": "a", "response": "x"}], {"a": ["x"]}),
    "output": ([{"question": "a", "output": "x"}], {"a": ["x"]}),
    "RealToxicityPrompts": ([{"prompt": {"text": "a", "toxicity": 0.1}, "continuation": {"text": "x", "toxicity": None}}], {"a": ["x"]}),
    "its generations": ([{"prompt": {"text": "a"}, "generations": [{"text": "x", "toxicity": 1}, {"text": "y"}]}], {"a": ["x", "y"]}),
    "a list of texts": ([{"prompt": "a", "completions": ["x", "y"]}, {"prompt": "b", "completions": ["z"]}], {"a": ["x", "y"], "b": ["z"]}),
    "choices of a server": ([{"prompt": "a", "choices": [{"message": {"content": "x"}}, {"text": "y"}]}], {"a": ["x", "y"]}),
    "chat messages": ([{"messages": [{"role": "user", "content": "a"}], "response": "x"}], {"a": ["x"]}),
    "lm-evaluation-harness": ([{"doc": {"prompt": "a"}, "resps": [["x"]]}], {None: ["x"]}),
    "its logged samples": ([{"arguments": {"gen_args_0": {"arg_0": "a", "arg_1": {"until": []}}}, "resps": [["x"]], "filtered_resps": ["x"]}], {"a": ["x"]}),
    "a conversation": ([{"messages": TALK}], {"a\nx\nb": ["y"]}),
    "a conversation of a pipeline": ([{"generated_text": TALK[:2]}], {"a": ["x"]}),
    "conversations as people share them": ([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]}], {"a": ["x"]}),
    "a conversation without an answer": ([{"messages": TALK}, {"messages": TALK[:1]}], {"a\nx\nb": ["y"], "a": [None]}),
    "several answers as messages": ([{"prompt": TALK[:1], "completion": [{"role": "assistant", "content": t} for t in "xy"]}], {"a": ["x", "y"]}),
    "a message in parts": ([{"prompt": "a", "response": {"role": "assistant", "content": [{"type": "text", "text": "x "}, {"type": "text", "text": "y"}]}}], {"a": ["x y"]}),
    "a prompt in parts": ([{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "response": "x"}], {"a": ["x"]}),
    "thoughts beside the message": ([{"prompt": "a", "output": [{"type": "reasoning", "summary": []}, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}]}], {"a": ["x"]}),
    "candidates in parts": ([{"prompt": "a", "response": {"candidates": [{"content": {"role": "model", "parts": [{"text": "x"}, {"text": "y"}]}}]}}], {"a": ["xy"]}),
    "a batch interface": ([{"custom_id": "1", "response": {"status_code": 200, "body": {"choices": [{"message": {"role": "assistant", "content": "x"}}]}}, "error": None}], {None: ["x"]}),
    "an index called continuation": ([{"prompt": "a", "continuation": 0, "output": "x"}], {"a": ["x"]}),
    "a number among texts": ([{"prompt": "a", "text": "x"}, {"prompt": "a", "text": 5}], {"a": ["x", None]}),
    "both, one empty": ([{"prompt": "a", "text": None, "generation": "x"}], {"a": ["x"]}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_people_have(shape, write, tmp_path):
    rows, wanted = SHAPES[shape]
    _, table = parts_of(write("given.jsonl", rows), tmp_path / "work")
    found: dict = {}
    for prompt, text in table.select("prompt", "text").iter_rows():
        found.setdefault(prompt, []).append(text)
    assert found == wanted
    assert table["prompt_id"].n_unique() == len(wanted)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(suffix, tmp_path):
    rows = [
        {"prompt": "say, \"hi\"", "text": "x\ny", "domain": "d"}, {"prompt": "NA", "text": "", "domain": "d"}, {"prompt": "é🙂", "text": "null", "domain": "e"},
    ]  # fmt: skip
    path = tmp_path / f"given{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif suffix in (".csv", ".tsv"):
        pl.DataFrame(rows).write_csv(path, separator="," if suffix == ".csv" else "\t")
    elif suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
    _, table = parts_of(path, tmp_path / "work")
    assert table.select("prompt", "text", "domain").to_dicts() == rows
    assert table["error"].null_count() == 3


def test_a_csv_cell_that_is_a_json_list_holds_several_texts_only_where_all_are(tmp_path):
    (tmp_path / "lists.csv").write_text('prompt,generations\na,"[""x"", ""y""]"\nb,"[]"\n', encoding="utf-8")
    _, table = parts_of(tmp_path / "lists.csv", tmp_path / "work")
    assert table.select("prompt", "text").rows() == [("a", "x"), ("a", "y"), ("b", None)]
    (tmp_path / "mixed.csv").write_text('prompt,text\na,"[""x""]"\nb,plain\n', encoding="utf-8")
    _, table = parts_of(tmp_path / "mixed.csv", tmp_path / "work")
    assert table["text"].to_list() == ['["x"]', "plain"]


def test_bad_rows_stay_as_failures_with_their_reason(tmp_path):
    lines = [
        '{"prompt": "a", "text": "fine"}',
        '{"prompt": "a", "text": null}',
        '{"prompt": "a"}',
        '{"prompt": "a", "text": "half \\ud800 pair"}',
        '{"prompt": "a", "text": "a\\u0000b"}',
        '{"prompt": "a", "text": ' + json.dumps("long " * 20_000) + "}",
        '{"prompt": "a", "text": 3.5}',
        '{"prompt": "a", "text": null, "error": "timed out"}',
        '{"prompt": "\\udfff", "text": "fine"}',
    ]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    parts, table = parts_of(tmp_path / "bad.jsonl", tmp_path / "work")
    assert (parts.rows, parts.failed) == (9, 5)
    assert table["error"].to_list() == [
        None, "no text", "no text", "not Unicode text: holds U+D800, half of a surrogate pair", None, None, "not a text but float",
        "timed out", None,
    ]  # fmt: skip
    assert table["text"][4] == "a\0b" and len(table["text"][5]) == 100_000


def test_an_empty_text_beside_an_error_is_a_failure_and_alone_a_text(write, tmp_path):
    rows = [{"text": "", "error": "timed out"}, {"text": ["x", " "], "error": {"code": 500}}, {"text": "", "error": None}, {"text": "", "error": 0.5}]  # fmt: skip
    parts, table = parts_of(write("given.jsonl", rows), tmp_path / "work")
    assert table["text"].to_list() == [None, "x", None, "", ""] and parts.failed == 2
    assert table["error"].to_list() == ["timed out", None, "{'code': 500}", None, None]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("lines.json", b'\xef\xbb\xbf{"prompt": "a", "text": "x"}\n\n{"prompt": "b", "text": "y"}\n'),
        ("array.jsonl", b' [{"prompt": "a", "text": "x"},\n {"prompt": "b", "text": "y"}]'),
        (
            "inside.json",
            b'{"about": ["z"], "rows": [{"prompt": "a", "text": "x"}, {"prompt": "b", "text": "y"}]}',
        ),
    ],
)
def test_json_and_lines_of_it_under_each_others_names(name, raw, tmp_path):
    (tmp_path / name).write_bytes(raw)
    _, table = parts_of(tmp_path / name, tmp_path / "work")
    assert table.select("prompt", "text").rows() == [("a", "x"), ("b", "y")]


def test_an_object_alone_is_one_row(tmp_path):
    (tmp_path / "one.json").write_text('{\n "prompt": "a",\n "text": "x"\n}', encoding="utf-8")
    assert parts_of(tmp_path / "one.json", tmp_path / "work")[1].select("prompt", "text").row(0) == ("a", "x")


def test_parquet_columns_that_python_cannot_hold_do_not_matter(tmp_path):
    far = [2**62, None]
    said = pa.struct(
        [("text", pa.string()), ("at", pa.timestamp("us", tz="UTC")), ("ids", pa.list_(pa.int32()))]
    )
    table = pa.table(
        {
            "prompt": pa.array(["a", "b"]).dictionary_encode(),
            "generations": pa.array([[{"text": "x", "at": 2**62, "ids": [1]}], None], pa.list_(said)),
            "when": pa.array(far, pa.timestamp("us")), "fine": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
            "took": pa.array(far, pa.duration("ns")), "day": pa.array([2**30, None], pa.date32()),
            "vector": pa.array([[0.5], None]), "raw": pa.array([b"\xff", None]),
        }
    )  # fmt: skip
    parquet.write_table(table, tmp_path / "odd.parquet")
    parts, read = parts_of(tmp_path / "odd.parquet", tmp_path / "work")
    assert read.select("prompt", "text").rows() == [("a", "x"), ("b", None)]
    assert "'vector'" in parts.told
    parquet.write_table(pa.table({"text": pa.array([b"x", "é".encode()])}), tmp_path / "bytes.parquet")
    assert parts_of(tmp_path / "bytes.parquet", tmp_path / "work")[1]["text"].to_list() == ["x", "é"]


def test_long_texts_are_kept_in_smaller_parts(write, tmp_path):
    rows = [{"prompt": str(n), "text": chr(65 + n) * 5_000_000} for n in range(9)]
    parts, table = parts_of(write("given.jsonl", rows), tmp_path / "work")
    assert parts.rows == 9 and len(parts.files) == 2
    assert [text[0] for text in table["text"]] == list("ABCDEFGHI") and table["row"].to_list() == [
        *range(1, 10)
    ]


def test_columns_can_be_named_and_are_said(write, tmp_path):
    path = write(
        "given.jsonl",
        [{"doc": {"q": "a"}, "said": "x", "text": "not this", "area": "north", "who": "m1", "seed": 1}],
    )
    parts, table = parts_of(
        path, tmp_path / "work", ["text=said", "prompt=doc.q", "domain=area", "source=who"]
    )
    assert table.select("prompt", "text", "domain", "source").row(0) == ("a", "x", "north", "m1")
    assert (
        parts.told
        == "text from 'said', prompt from 'doc.q', domain from 'area', source from 'who'; not used: 'text', 'seed'"
    )


MISTAKES = {
    "no column fits": ([{"prompt": "a", "score": 1.0}], (), "no column with generated text; it holds 'prompt', 'score'"),
    "a column that is not there": ([{"text": "a"}], ("text=said",), "column 'said' is missing; it holds 'text'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_read_says_what_is_there(case, write, tmp_path):
    rows, columns, said = MISTAKES[case]
    with pytest.raises(DataError, match=said):
        parts_of(write("given.jsonl", rows), tmp_path / "work", columns)


@pytest.mark.parametrize(
    ("raw", "name", "said"),
    [
        (b'{"text": "a"}\n{"text": "b', "a.jsonl", "line 2: not JSON"),
        (b'{"text": "a"}\n[1]\n', "a.jsonl", "line 2: a JSON object was expected"),
        (b'{"text": "\xff"}\n', "a.jsonl", "line 1: is not UTF-8"),
        (b"", "a.jsonl", "holds no rows"),
        (b"\n\n", "a.jsonl", "holds no rows"),
        (b"text,prompt\n", "a.csv", "holds no rows"),
        (b"text,prompt\na\n", "a.csv", "line 2: 1 fields, the header has 2"),
        (b"text,text\na,b\n", "a.csv", "occurs twice"),
        (b'text\n"a\n', "a.csv", "cut off"),
        (b"text;prompt\na;b\n", "a.csv", "separate columns by commas"),
        (b"PAR1", "a.parquet", "not a readable parquet file"),
        (b"nothing of the kind", "a.jsonl.gz", "cannot be read"),
        (b'{"a": {"0": 1}}', "a.json", "a JSON array of objects was expected"),
    ],
)
def test_a_damaged_file_is_one_line(raw, name, said, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=said) as refused:
        parts_of(tmp_path / name, tmp_path / "work")
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_roles_of_the_command_line():
    assert chosen(["text=a", "prompt=b=c"]) == {"text": "a", "prompt": "b=c"}
    with pytest.raises(ConfigError, match="did you mean 'prompt'"):
        chosen(["promt=a"])
    with pytest.raises(ConfigError, match="ROLE=COLUMN"):
        chosen(["text"])


def test_texts_and_prompts_of_odd_cells():
    assert texts_in([["a"], {"text": "b"}, 3, None]) == ["a", "b", None, None]
    assert texts_in({"other": "a"}) == [None] and texts_in([]) == []
    deep: list = ["a"]
    for _ in range(50):
        deep = [deep]
    assert texts_in(deep) == [None]
    assert prompt_in({"text": 3}) is None and prompt_in([]) is None and prompt_in([1]) is None
