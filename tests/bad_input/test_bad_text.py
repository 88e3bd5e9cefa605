"""Odd texts from a file to the report: the same text, or one line with its place, or a row counted as failed."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from unidetox_ray import registry, warned
from unidetox_ray.artifacts import write_corpus_csv, write_parquet
from unidetox_ray.corpus_files import write_corpus
from unidetox_ray.data import files
from unidetox_ray.data.base import Options, Request
from unidetox_ray.data.text import read_corpus
from unidetox_ray.errors import DataError
from unidetox_ray.families.loading import encode, special_ids
from unidetox_ray.families.scratch import build_model
from unidetox_ray.families.tokenizers import train_tokenizer
from unidetox_ray.metrics.classifier import LexiconClassifier, ToxicityClassifier
from unidetox_ray.report import html, markdown, text
from unidetox_ray.settings import EvaluateSection, ScratchSection
from unidetox_ray.stages.continuations import continuations

ODD = {
    "NA": "NA", "null": "null", "None": "None", "nan": "nan", "true": "True", "a number": "1e5", "a blank": " ",
    "NUL": "a\0b", "escape codes": "\x1b[31mred\x1b]0;t\x07", "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\U000e0067",
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627", "combining": "e" + "\u0301" * 40, "CRLF": "a\r\nb\rc\n",
    "line separators": "a\u2028b\u2029c\x85d", "byte order mark": "\ufeffa", "private use": "\ue000\U0010ffff", "replacement": "\ufffd",
    "quotes": 'a "b", \'c\'', "formula": '=HYPERLINK("http://x.invalid")', "formula after ;": "a; =1+1;'@x", "tab first": "\tcmd",
    "apostrophes": "''=1", "html": "<script>alert(1)</script>", "a link": "[x](javascript:alert(1))", "an end token": "<|endoftext|></s>",
    "100,000 characters": "word " * 20000,
}  # fmt: skip
LONG = "100,000 characters"
any_text = st.text(st.characters(codec="utf-8"), max_size=30) | st.text(
    st.sampled_from("=+-@;'\t\r\n\" a,"), max_size=12
)


def table_of(path: Path) -> pl.DataFrame:
    return files.read_table(path, Request(path, Options()))


def written(texts: list[str], suffix: str, path: Path) -> Path:
    """A foreign file, as other programs write it."""
    path = path.with_suffix(suffix)
    if suffix in {".csv", ".tsv"}:
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerows([["text", "n"], *([each, index] for index, each in enumerate(texts))])
        path.write_bytes(stream.getvalue().encode())
    elif suffix == ".parquet":
        pl.DataFrame({"text": texts}, schema={"text": pl.String}).write_parquet(path)
    else:
        rows = [{"text": each} for each in texts]
        path.write_text(
            json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        )
    return path


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(any_text, min_size=1, max_size=5))
def test_any_text_is_read_as_it_stands(suffix, texts, tmp_path):
    found = table_of(written(texts, suffix, tmp_path / "file"))["text"].to_list()
    # A line that holds nothing at all is no row of a csv file; with a second column there is none.
    assert found == texts


@settings(deadline=None, max_examples=200)
@given(any_text)
def test_a_neutral_cell_is_no_formula_and_is_restored(raw):
    cell = warned.neutral(raw)
    assert warned.restored(cell) == raw
    assert not cell.startswith(("\t", "\r", "\n"))
    for part in cell.split(";"):
        assert not part.strip().startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_corpus_file_of_ours_is_read_as_it_was(suffix, tmp_path):
    texts = [each for each in ODD.values() if each.strip()]
    source = tmp_path / "corpus.parquet"
    write_parquet(source, pl.DataFrame({"text": texts, "ended": [True] * len(texts)}))
    out = tmp_path / f"out{suffix}"
    write_corpus(source, out)
    assert read_corpus(out).table["text"].to_list() == texts
    if suffix == ".parquet":
        assert pl.read_parquet_metadata(out)["content_warning"] == warned.WARNING
    else:
        beside = json.loads((tmp_path / f"out{suffix}-metadata.json").read_text())
        assert beside == {"url": out.name, "content_warning": warned.WARNING}
    if suffix == ".csv":
        with out.open(newline="", encoding="utf-8") as stream:
            cells = [row[0] for row in csv.reader(stream)]
        assert cells[0] == "Text" and not any(
            cell.lstrip().startswith(("=", "+", "-", "@")) for cell in cells
        )
        assert pl.read_csv(out, infer_schema=False).columns == ["Text"]
    assert out.stat().st_mode & 0o077 == 0


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(any_text.filter(lambda each: each.strip()), min_size=1, max_size=4))
def test_any_corpus_survives_csv(texts, tmp_path):
    path = tmp_path / "corpus.csv"
    write_corpus_csv(path, texts)
    assert read_corpus(path).table["text"].to_list() == texts


def test_another_programs_csv_keeps_its_apostrophes(tmp_path):
    path = tmp_path / "theirs.csv"
    for raw, texts in (
        (
            b"Text\r\n'=1\r\n'@me\r\n",
            ["'=1", "'@me"],
        ),  # the published corpus has this header and these line ends
        (b'"Text"\n"\'=1"\n"=2"\n', ["'=1", "=2"]),  # ours holds no bare formula
    ):
        path.write_bytes(raw)
        assert read_corpus(path).table["text"].to_list() == texts


BROKEN = {
    "half a pair": (".jsonl", b'{"text": "fine"}\n{"text": "a\\ud800b"}\n', "line 2: holds U+D800, half of a surrogate pair"),
    "half a pair in a key": (".jsonl", b'{"te\\udfffxt": "a"}\n', "line 1: holds U+DFFF"),
    "half a pair in an array": (".json", b'[{"text": "\\ud83d"}]', "holds U+D83D"),
    "half a pair as bytes": (".jsonl", b'{"text": "\xed\xa0\x80"}\n', "is not utf-8: byte 0xed at offset 10"),
    "half a pair in a csv": (".csv", b"text\n\xed\xa0\x80\n", "is not utf-8: byte 0xed at offset 5"),
    "deep": (".jsonl", b"[" * 100000, "line 1: not "),
    "a number of 5000 digits": (".jsonl", b'{"a": ' + b"9" * 5000 + b"}", "line 1: not readable as JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_text_is_one_line_with_its_place(case, tmp_path):
    suffix, raw, said = BROKEN[case]
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(raw)
    with pytest.raises(DataError) as refused:
        table_of(path)
    assert str(path) in str(refused.value) and said in str(refused.value) and str(refused.value).isprintable()


@pytest.fixture(scope="module", params=registry.names("families"))
def opened(request):
    """(model, tokenizer) of a tiny untrained model of each family."""
    family = registry.lookup("families", request.param)
    tokenizer = train_tokenizer(family, ["the cat sat on the mat"], 300)
    spec = ScratchSection(hidden=16, layers=1, heads=2, max_positions=128, seed=5)
    return build_model(family, tokenizer, spec).eval(), tokenizer


PROTOCOL = EvaluateSection(continuations=2, max_new_tokens=4, ppl_model=None)


def continued(opened, texts: list[str]) -> dict[str, list[dict]]:
    """Rows by prompt id; as many as there must be, each with a text or with a reason."""
    prompts = [(f"p{index}", each) for index, each in enumerate(texts)]
    rows = continuations(*opened, prompts, PROTOCOL, cell="c", run=0, decode_rows=64)
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [
        (name, j) for name, _ in prompts for j in range(2)
    ]
    for row in rows:
        assert (row["text"] is None) == (row["error"] is not None) == (row["n_tokens"] is None)
    return {name: [row for row in rows if row["prompt_id"] == name] for name, _ in prompts}


def test_odd_prompts_are_continued_or_counted_as_failed(opened):
    found = continued(opened, ["", *ODD.values(), "\u0000"])
    names = dict(zip(found, ["empty", *ODD, "only NUL"], strict=True))
    failed = {names[name] for name, rows in found.items() if rows[0]["error"]}
    # The one that does not fit into the model's positions; it leaves the others of its batch alone.
    assert failed == {LONG}
    alone = continued(opened, ["NA"])["p0"]
    na = next(name for name, case in names.items() if case == "NA")
    assert len(found[na]) == len(alone) == 2
    pl.DataFrame([row for rows in found.values() for row in rows]).write_parquet(io.BytesIO())


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(any_text, min_size=1, max_size=4))
def test_any_prompts_give_their_rows(opened, texts):
    assert all(row["error"] is None for rows in continued(opened, texts).values() for row in rows)


def test_only_end_tokens_are_text_that_trains_and_is_continued(opened):
    _, tokenizer = opened
    end = tokenizer.decode([special_ids(tokenizer, None).eos])
    assert encode(tokenizer, end * 3, bos="never") == [special_ids(tokenizer, None).eos] * 3
    assert all(row["error"] is None for row in continued(opened, [end * 3])["p0"])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> ToxicityClassifier:
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = train_tokenizer(registry.lookup("families", "opt"), ["the cat sat on the mat"], 300)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, num_labels=2, id2label={0: "toxic", 1: "insult"}, label2id={"toxic": 0, "insult": 1},
        problem_type="multi_label_classification", pad_token_id=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ToxicityClassifier(str(folder))


def test_odd_texts_are_scored_or_null_with_a_reason(classifier):
    texts = [*ODD.values(), None, ""]
    scores = classifier.score(texts)
    assert len(scores) == len(classifier.errors) == len(texts)
    for score, error in zip(scores, classifier.errors, strict=True):
        assert (score is None) == (error is not None) and (score is None or 0 < score < 1)
    assert scores[-2] is None and None not in scores[: len(ODD)]
    assert classifier.score(["NA", "nan"]) == pytest.approx([scores[0], scores[3]], abs=1e-5)
    words = LexiconClassifier(["red", "=1"])
    assert words.score(texts)[-2:] == [None, 0.0] and len(words.errors) == len(texts)


@settings(deadline=None, max_examples=25)
@given(st.lists(any_text, min_size=1, max_size=5))
def test_any_texts_are_scored(classifier, texts):
    scores = classifier.score(texts)
    for score, error in zip(scores, classifier.errors, strict=True):
        assert (score is None) == (error is not None)


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("show", [False, True])
def test_odd_texts_in_a_report_are_one_printable_line(case, show):
    shown = text.sample(ODD[case], show)
    assert len(shown) <= 280 and "\n" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert "<script" not in html.escape(shown) and "<script" not in markdown.escape(shown)
    assert not re.search(r"(?<!\\)\]\(", markdown.escape(shown))  # a bracket that closes a link's text
    (html.escape(shown) + markdown.escape(shown)).encode("utf-8")
