"""Local files as tables of exactly the values they hold: csv, tsv, jsonl, json, parquet and plain text.

Text arrives byte for byte: "NA", "null", "nan" and the empty string stay text, line ends inside a field, NUL
and emoji stay; what `warned.neutral` added to a corpus file of ours is taken off again. The csv module of Python reads csv and tsv because polars fills a short row with nulls without
a word.
"""

from __future__ import annotations

import codecs
import csv
import fnmatch
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import warned
from unidetox_ray.data.base import Request
from unidetox_ray.errors import ConfigError, DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

#: The csv module refuses longer fields; the default of 128 KiB is too little for a whole document.
FIELD_LIMIT = 2**27


def read_bytes(path: Path, request: Request, name: str | None = None) -> bytes:
    """The file's bytes; their sha256 goes to `request.sources` under `name` (default: the file name)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or type(error).__name__}; check `path`"
        ) from error
    request.sources[name or path.name] = hashlib.sha256(data).hexdigest()
    return data


def decode(data: bytes, path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, byte order mark removed; DataError with the offset that does not fit."""
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise ConfigError(f"{path.name}: unknown encoding {encoding!r}; try utf-8 or iso-8859-1") from error
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {encoding}: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "save it as UTF-8"
        ) from error


def read_table(path: Path, request: Request, name: str | None = None) -> pl.DataFrame:
    """A table file by its suffix. csv and tsv columns are strings; an unnamed column is called ""."""
    data = read_bytes(path, request, name)
    suffix = path.suffix.lower()
    if suffix in {".csv", ".tsv"}:
        text = decode(data, path)
        table = _separated(text, "\t" if suffix == ".tsv" else ",", path)
        if table.columns == ["Text"] and warned.is_corpus_csv(text, cells := table["Text"].to_list()):
            return pl.DataFrame({"Text": [warned.restored(cell) for cell in cells]}, schema=table.schema)
        return table
    if suffix == ".jsonl":
        return _records(_json_lines(decode(data, path), path), path)
    if suffix == ".json":
        return _records(_json_array(decode(data, path), path), path)
    if suffix == ".parquet":
        try:
            return pl.read_parquet(io.BytesIO(data))
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            # A panic of the Rust code below polars is no Exception.
            raise DataError(f"{path} is not a readable parquet file: {_first_line(error)}") from error
    raise DataError(
        f"{path}: cannot read a {suffix or 'suffix-less'} file as a table; accepted: {', '.join(SUFFIXES)}"
    )


def read_records(path: Path, request: Request) -> list[dict[str, Any]]:
    """The rows of a .jsonl, .json or .parquet file as they are, nested values as dicts and lists."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _json_lines(decode(read_bytes(path, request), path), path)
    if suffix == ".json":
        return _json_array(decode(read_bytes(path, request), path), path)
    if suffix == ".parquet":
        return read_table(path, request).to_dicts()
    raise DataError(f"{path}: nested rows are read from .jsonl, .json and .parquet files")


def text_column(table: pl.DataFrame, column: str, where: str) -> pl.Series:
    """A column that must hold text in every row; DataError with the first row (from 1) that does not."""
    if column not in table.columns:
        raise DataError(
            f"{where}: column {column!r} is missing; it holds {', '.join(map(repr, table.columns))}"
        )
    values = table[column]
    if values.dtype != pl.String:
        raise DataError(f"{where}: column {column!r} holds {values.dtype}, expected text")
    if values.null_count():
        raise DataError(f"{where}: column {column!r} has no text in row {values.is_null().arg_true()[0] + 1}")
    return values


def find(folder: Path, names: Iterable[str], what: str) -> Path:
    """The first of `names` (globs allowed) below `folder`; DataError listing what was looked for."""
    wanted = list(names)
    for name in wanted:
        found = sorted(place for place in folder.glob(name) if place.is_file())
        if len(found) > 1:
            listed = ", ".join(place.name for place in found)
            raise DataError(f"{folder}: more than one file for {what}: {listed}; name one in the options")
        if found:
            return found[0]
    raise DataError(f"{folder}: no file for {what}; looked for {', '.join(wanted)}")


def split_tables(request: Request, title: str, usual: Mapping[str, Sequence[str]]) -> dict[str, pl.DataFrame]:
    """A table per split of a data set that is a folder: of the file that the option `<split>_path` names, else of the first of
    the split's usual names that is there. title: the data set's, for messages. DataError: no folder, or a file is missing."""
    if request.path is None or not request.path.is_dir():
        raise DataError(
            f"{request.path}: data set {title.lower()!r} needs a folder holding both the {' and the '.join(usual)} file"
        )
    tables = {}
    for split, names in usual.items():
        given = getattr(request.options, f"{split}_path")
        place = find(request.path, [given] if given else names, f"{title} {split}")
        tables[split] = read_table(place, request, name=place.relative_to(request.path).as_posix())
    return tables


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a relative file name, or its last part, fits one of the globs."""
    return any(fnmatch.fnmatch(name, glob) or fnmatch.fnmatch(Path(name).name, glob) for glob in globs)


def _separated(text: str, separator: str, path: Path) -> pl.DataFrame:
    previous = csv.field_size_limit(FIELD_LIMIT)
    # strict: an unclosed or half-quoted field is a damaged file, not text to guess at. newline="" keeps CRLF
    # in fields.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows: list[list[str]] = []
        for row in reader:
            if row and rows and len(row) != len(rows[0]):
                raise DataError(
                    f"{path} line {reader.line_num}: {len(row)} fields, the header has {len(rows[0])}"
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise DataError(
            f"{path} line {reader.line_num}: {error}; is the file cut off or not {path.suffix}?"
        ) from error
    finally:
        csv.field_size_limit(previous)
    if not rows:
        raise DataError(f"{path} is empty; expected a header and rows")
    header = rows[0]
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"{path}: column {doubled[0]!r} occurs twice in the header")
    return pl.DataFrame(rows[1:], schema=dict.fromkeys(header, pl.String), orient="row")


def _json_lines(text: str, path: Path) -> list[Any]:
    rows = []
    # Only "\n" ends a record: splitlines() would also cut at U+2028 inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} line {number}: not JSON ({error.msg} at column {error.colno})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number}: not readable as JSON ({_first_line(error)})") from error
        _whole_text(row, line, f"{path} line {number}")
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number}: a JSON object was expected, found {type(row).__name__}")
        rows.append(row)
    return rows


def _json_array(text: str, path: Path) -> list[Any]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({_first_line(error)})") from error
    _whole_text(rows, text, str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: a JSON array of objects was expected")
    return rows


def _whole_text(value: Any, source: str, where: str) -> None:
    """DataError for half of a surrogate pair, which JSON can write as an escape and no text can hold."""
    if "\\u" not in source:  # most lines: nothing to look for
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: holds U+{ord(error.object[error.start]):04X}, half of a surrogate pair, which is not Unicode text; remove it"
        ) from error


def _records(rows: list[Any], path: Path) -> pl.DataFrame:
    if not rows:
        raise DataError(f"{path} holds no rows")
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        # strict: a number among texts is an error here and not a null later.
        return pl.DataFrame({name: _column([row.get(name) for row in rows]) for name in names})
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path}: a column mixes kinds of values or holds text that is not Unicode: {_first_line(error)}"
        ) from error


def _column(values: list[Any]) -> pl.Series:
    # JSON writes 5.0 as 5 now and then: a column of both is a column of floats.
    if {type(value) for value in values} - {type(None)} == {int, float}:
        values = [None if value is None else float(value) for value in values]
    return pl.Series(values, strict=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
