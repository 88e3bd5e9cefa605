"""Any local text: .txt by paragraphs or lines, or one column of a csv, tsv, jsonl, json or parquet file.

Serves clean text (held-out perplexity), text to pre-train small models on, and toxic text of one's own. Also
reads a distilled corpus from a file, the published one of 640 texts among them (`load_corpus`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from unidetox_ray.data import files
from unidetox_ray.data.base import Dataset, Loaded, Options, Request, hash_share, need_path
from unidetox_ray.errors import DataError

#: Columns tried when none is named; the published corpus has "Text".
TEXT_COLUMNS = ("text", "Text")


class TextOptions(Options):
    """How to cut files into texts and texts into splits."""

    include: tuple[str, ...] = Field(default=("**/*.txt",), min_length=1)
    """Globs below a folder `path`; a file `path` is read whatever its name."""
    column: str | None = None
    """Column of a table file; null = "text" or "Text"."""
    unit: Literal["paragraphs", "lines"] = "paragraphs"
    """.txt only: a text is a block between blank lines (its lines joined by blanks), or each line."""
    encoding: str = "utf-8"
    """.txt only: how bytes become text. Nothing is guessed: iso-8859-1 has to be asked for."""
    encodings: dict[str, str] = Field(default={})
    """.txt only: glob -> encoding, for single files that differ from `encoding`."""
    min_chars: int = Field(default=1, ge=1)
    """Shorter texts are dropped, in characters after cutting."""
    max_chars: int | None = Field(default=None, ge=20)
    """Longer texts are cut between words into pieces of at most this many characters; null = never."""
    test_files: tuple[str, ...] = ()
    """Globs: these files are `test` whole."""
    test_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of the other files' texts that is `test`, by hash; null = 0.1 without `test_files`, else 0."""
    dev_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the other files' texts that is `dev`, by hash."""


def load(role: str, request: Request) -> pl.DataFrame:
    """TEXTS: text_id is "<file below path>:<number of the text>", `target` is null; the same for every role.

    Each text is kept once; one that is also in `test` leaves the other splits (counted in the notes).
    """
    options: TextOptions = request.options
    path = need_path(
        request, "text", "a .txt, .csv, .tsv, .jsonl, .json or .parquet file, or a folder of such files"
    )
    rows: list[tuple[str, str, str]] = []
    counts = {"texts_in_files": 0, "empty_or_short_removed": 0}
    for place, name in _places(path, options):
        held_out = files.matches(name, options.test_files)
        number = 0
        for text in _texts(place, name, request):
            counts["texts_in_files"] += 1
            for piece in _pieces(text, options.max_chars):
                if len(piece) < options.min_chars or not piece.strip():
                    counts["empty_or_short_removed"] += 1
                    continue
                rows.append((f"{name}:{number:06d}", piece, "test" if held_out else _split(piece, options)))
                number += 1
    if options.test_files and not any(row[2] == "test" for row in rows):
        raise DataError(f"{path}: option test_files {list(options.test_files)} fits no file that holds text")
    table = pl.DataFrame(
        rows, schema={"text_id": pl.String, "text": pl.String, "split": pl.String}, orient="row"
    )
    test = table.filter(pl.col("split") == "test")["text"]
    apart = table.filter((pl.col("split") == "test") | ~pl.col("text").is_in(test.implode()))
    unique = apart.unique("text", keep="first", maintain_order=True)
    request.notes.update(counts)
    request.notes["also_in_test_removed"] = table.height - apart.height
    request.notes["duplicates_removed"] = apart.height - unique.height
    return unique.with_columns(target=pl.lit(None, dtype=pl.String))


def read_corpus(path: str | Path) -> Loaded:
    """A corpus to fine-tune on, in file order: `text` (String) and `ended` (Boolean: did the text really end?).

    Reads column `text` or `Text`, and `ended` where there is one (else null: not known, so no end token is taught), of a
    csv, tsv, jsonl, json or parquet file. Empty texts are left out and repeated ones kept; both are counted in `notes`
    (rows, empty_removed, duplicates). Raises DataError.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise DataError(
            f"no such corpus file: {place}; expected csv, tsv, jsonl, json or parquet with a column text"
        )
    request = Request(path=place, options=None)
    table = files.read_table(place, request)
    texts = _table_column(table, None, place.name, "call the one to train on text").rename("text")
    ended = pl.Series("ended", [None] * len(texts), dtype=pl.Boolean)
    if "ended" in table.columns:
        words = table["ended"].cast(pl.String).str.to_lowercase()
        ended = words.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    whole = pl.DataFrame([texts, ended.rename("ended")])
    kept = whole.filter(pl.col("text").str.strip_chars() != "")
    if kept.is_empty():
        raise DataError(f"{place}: the corpus holds no text")
    notes = {
        "rows": kept.height,
        "empty_removed": whole.height - kept.height,
        "duplicates": kept.height - kept["text"].n_unique(),
    }
    return Loaded(kept, request.sources[place.name], place.name, notes)


def load_corpus(path: str | Path) -> pl.DataFrame:
    """The table of `read_corpus`: columns `text` and `ended`."""
    return read_corpus(path).table


def _places(path: Path, options: TextOptions) -> list[tuple[Path, str]]:
    """The files to read, each with its name below `path`, sorted by that name."""
    if path.is_file():
        return [(path, path.name)]
    found = {
        place.relative_to(path).as_posix(): place for glob in options.include for place in path.glob(glob)
    }
    places = [(place, name) for name, place in sorted(found.items()) if place.is_file()]
    if not places:
        raise DataError(f"{path}: no file fits option include {list(options.include)}")
    return places


def _texts(place: Path, name: str, request: Request) -> list[str]:
    options: TextOptions = request.options
    if place.suffix.lower() in files.SUFFIXES:
        return _table_column(files.read_table(place, request, name), options.column, name).to_list()
    encoding = next(
        (kind for glob, kind in options.encodings.items() if files.matches(name, (glob,))), options.encoding
    )
    text = files.decode(files.read_bytes(place, request, name), place, encoding).replace("\r\n", "\n")
    if options.unit == "lines":
        return text.split("\n")
    return [
        " ".join(line.strip() for line in block.split("\n")).strip()
        for block in re.split(r"\n(?:[ \t]*\n)+", text)
    ]


def _table_column(
    table: pl.DataFrame, column: str | None, where: str, advice: str = "name one with option column"
) -> pl.Series:
    if column is None:
        known = [name for name in TEXT_COLUMNS if name in table.columns]
        if not known:
            held = ", ".join(map(repr, table.columns))
            raise DataError(f"{where}: no column 'text' or 'Text'; it holds {held}; {advice}")
        column = known[0]
    return files.text_column(table, column, where)


def _pieces(text: str, limit: int | None) -> list[str]:
    """`text` in pieces of at most `limit` characters, cut at the last blank that fits, else hard."""
    pieces = []
    while limit is not None and len(text) > limit:
        cut = text.rfind(" ", 1, limit + 1)
        if cut < 1:
            cut = limit
        pieces.append(text[:cut])
        text = text[cut:].lstrip(" ")
    return [*pieces, text]


def _split(text: str, options: TextOptions) -> str:
    test_share = options.test_share
    if test_share is None:
        test_share = 0.0 if options.test_files else 0.1
    share = hash_share(text, "text-split")
    if share < test_share:
        return "test"
    return "dev" if share < test_share + options.dev_share else "train"


DATASET = Dataset(
    name="text",
    roles=("clean", "pretrain", "toxic"),
    licence="that of the file you name",
    citation="cite the file you name",
    options=TextOptions,
    load=load,
)
