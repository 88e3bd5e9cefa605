"""Local text: cutting, splits, encodings; and the corpus reader."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.data.base import load
from unidetox_ray.data.text import load_corpus, read_corpus
from unidetox_ray.errors import ConfigError, DataError


def texts(path, **options):
    return load("pretrain", dataset="text", path=str(path), options=options).table["text"].to_list()


def test_paragraphs_join_their_lines_and_lines_do_not(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n \r\n\r\nthree \xf0\x9f\x98\x80\x00\r\n")
    assert texts(path) == ["one two", "three 😀\x00"]
    assert texts(path, unit="lines") == ["one", "two", "three 😀\x00"]


def test_encoding_has_to_be_asked_for(tmp_path):
    (tmp_path / "old.txt").write_bytes("café".encode("iso-8859-1"))
    (tmp_path / "new.txt").write_bytes("thé".encode())
    with pytest.raises(DataError, match=r"old\.txt is not utf-8: byte 0xe9 at offset 3"):
        texts(tmp_path)
    assert texts(tmp_path, encodings={"old.txt": "iso-8859-1"}) == ["thé", "café"]
    assert texts(tmp_path / "old.txt", encoding="iso-8859-1") == ["café"]
    with pytest.raises(ConfigError, match="unknown encoding"):
        texts(tmp_path, encoding="latin-99")


def test_long_texts_are_cut_between_words_and_short_ones_dropped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word " * 50 + "\n\nhi\n\n" + "x" * 45)
    pieces = texts(path, max_chars=20)
    assert all(len(piece) <= 20 for piece in pieces)
    assert "word word word word" in pieces and "hi" in pieces
    assert "x" * 20 in pieces and "x" * 5 in pieces
    loaded = load("clean", dataset="text", path=str(path), options={"min_chars": 5})
    assert "hi" not in loaded.table["text"].to_list()
    assert loaded.notes["empty_or_short_removed"] == 1


def test_columns_of_table_files(layouts, tmp_path):
    layouts.csv(tmp_path / "a.csv", ("Text", "other"), [["NA", "x"], ["two\r\nlines", "y"]])
    layouts.jsonl(tmp_path / "b.jsonl", [{"text": " null "}])
    pl.DataFrame({"body": ["z"]}).write_parquet(tmp_path / "c.parquet")
    assert texts(tmp_path, include=["*.csv", "*.jsonl"]) == ["NA", "two\r\nlines", " null "]
    assert texts(tmp_path / "a.csv", column="other") == ["x", "y"]
    with pytest.raises(DataError, match=r"c.parquet: no column 'text' or 'Text'; it holds 'body'"):
        texts(tmp_path, include=["*.parquet"])
    assert texts(tmp_path / "c.parquet", column="body") == ["z"]


def test_test_files_win_and_shares_cut_by_hash(layouts, tmp_path):
    layouts.text(tmp_path)
    held = load("clean", dataset="text", path=str(tmp_path), options={"test_files": ["held.txt"]})
    assert held.notes["splits"] == {"test": 2, "train": 39}
    assert held.notes["also_in_test_removed"] == 1
    assert held.table["text_id"][0] == "held.txt:000000"
    shares = {"test_share": 0.3, "dev_share": 0.3}
    by_hash = load("clean", dataset="text", path=str(tmp_path / "story.txt"), options=shares)
    assert set(by_hash.notes["splits"]) == {"train", "dev", "test"}
    every = load("clean", dataset="text", path=str(tmp_path / "story.txt"), options={"test_share": 0})
    assert every.notes["splits"] == {"train": 40}
    with pytest.raises(DataError, match="fits no file"):
        load("clean", dataset="text", path=str(tmp_path), options={"test_files": ["none.txt"]})
    with pytest.raises(DataError, match="no file fits option include"):
        texts(tmp_path, include=["*.md"])


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n \n")
    with pytest.raises(DataError, match="no rows"):
        texts(tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_corpus_file_counts_empties_and_repeats(suffix, layouts, tmp_path):
    path, held = tmp_path / f"corpus{suffix}", ["one\r\n\ntwo", "", "NA", "NA", "  "]
    if suffix == ".csv":
        layouts.csv(path, ("Text",), [[text] for text in held])
    elif suffix == ".jsonl":
        layouts.jsonl(path, [{"text": text} for text in held])
    else:
        pl.DataFrame({"text": held}).write_parquet(path)
    loaded = read_corpus(path)
    assert loaded.table.schema == {"text": pl.String, "ended": pl.Boolean}
    assert loaded.table["ended"].to_list() == [None, None, None]  # not known: no end token is taught
    assert loaded.table["text"].to_list() == ["one\r\n\ntwo", "NA", "NA"]
    assert loaded.notes == {"rows": 3, "empty_removed": 2, "duplicates": 1}
    assert load_corpus(path).equals(loaded.table)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_corpus_file_keeps_which_texts_ended(suffix, tmp_path):
    path, table = tmp_path / f"corpus{suffix}", pl.DataFrame({"text": ["a b", "c"], "ended": [True, False]})
    {".csv": table.write_csv, ".jsonl": table.write_ndjson, ".parquet": table.write_parquet}[suffix](path)
    assert load_corpus(path).equals(table)


def test_wrong_corpus_files_are_refused(layouts, tmp_path):
    with pytest.raises(DataError, match="no such corpus file"):
        load_corpus(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="no column 'text' or 'Text'"):
        load_corpus(layouts.csv(tmp_path / "a.csv", ("words",), [["x"]]))
    with pytest.raises(DataError, match="holds no text"):
        load_corpus(layouts.jsonl(tmp_path / "a.jsonl", [{"text": " "}]))


def test_real_published_corpus(shared_data):
    loaded = read_corpus(next((shared_data / "unidetox").glob("*.csv")))
    assert loaded.notes == {"rows": 640, "empty_removed": 0, "duplicates": 0}
    assert loaded.sha256 == "ba537cd7d234b76f2cd698f70befd0868241ba9fdf8e959933d213575b43ec2b"
    # reference/unidetox.md 5: 684,326 characters, 5,720 line breaks inside the texts.
    assert loaded.table["text"].str.len_chars().sum() == 684_326
    assert loaded.table["text"].str.count_matches("\n").sum() == 5_720


def test_real_books_and_wikitext(shared_data):
    books = load(
        "clean",
        dataset="text",
        path="corpora",
        data_root=str(shared_data),
        options={
            "include": ["gutenberg/*.txt", "wikitext-2/*.txt"],
            "encodings": {"*/shakespeare-caesar.txt": "iso-8859-1", "*/chesterton-ball.txt": "iso-8859-1"},
            "test_files": ["wikitext-2/test.txt"],
            "min_chars": 40,
            "max_chars": 600,
        },
    )
    assert len(books.notes["files"]) == 19
    assert books.table["text"].str.len_chars().max() <= 600
    assert set(books.table.filter(pl.col("split") == "test")["text_id"].str.head(19)) == {
        "wikitext-2/test.txt"
    }
