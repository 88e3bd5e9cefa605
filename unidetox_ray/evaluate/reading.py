"""Rows of a foreign file as a stream: what a file of any size costs in memory is one batch of its rows.

A file that is cut off or is not what its suffix says ends the command with the line that does not fit. A row that cannot be
judged, because it has no text or one that is not Unicode, stays as a row without a text and with the reason.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from unidetox_ray.data.files import FIELD_LIMIT
from unidetox_ray.errors import DataError

#: Suffixes of tables that can be read, each also with .gz behind it where it is text.
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
#: A longer line is no row of texts: reading it would take the memory that streaming saves.
LONGEST_LINE = 2**28
_BATCH = 4096

Row = Mapping[str, Any]


def kind_of(path: Path) -> str | None:
    """The suffix that says how to read a file, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] in TABLES and suffixes[-1] != ".parquet" else None
    return suffixes[-1] if suffixes and suffixes[-1] in TABLES else None


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a table file in their order. DataError for what is not one, and for a file without a row."""
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path}: cannot read such a file as a table; accepted: {', '.join(TABLES)}")
    try:
        rows = _parquet(path) if kind == ".parquet" else _text_rows(path, kind)
        first = list(islice(rows, 1))
        if not first:
            raise DataError(f"{path}: holds no rows")
        yield from chain(first, rows)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason[:200]})") from None


def _text_rows(path: Path, kind: str) -> Iterator[Row]:
    if kind == ".json":
        yield from _array(path)
    elif kind in (".csv", ".tsv"):
        yield from _separated(path, "\t" if kind == ".tsv" else ",")
    else:
        yield from _lines(path)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if len(line) >= LONGEST_LINE:
                raise DataError(f"{path} line {number}: is longer than {LONGEST_LINE >> 20} MiB")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            yield _record(_parsed(line, f"{path} line {number}"), f"{path} line {number}")


def _parsed(source: bytes, where: str) -> Any:
    try:
        return json.loads(source.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: is not UTF-8 (byte 0x{source[error.start]:02x}); save it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); is the file cut off?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not readable as JSON ({str(error)[:120]})") from None


def _record(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON object was expected, found {type(value).__name__}")
    return value


def _array(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        found = _parsed(stream.read().removeprefix(b"\xef\xbb\xbf"), str(path))
    if isinstance(found, dict):
        # {"results": […]}: the one list of objects in it.
        lists = [each for each in found.values() if isinstance(each, list)]
        found = lists[0] if len(lists) == 1 else found
    if not isinstance(found, list):
        raise DataError(f"{path}: a JSON array of objects was expected")
    for number, value in enumerate(found, start=1):
        yield _record(value, f"{path} entry {number}")


def _separated(path: Path, separator: str) -> Iterator[Row]:
    before = csv.field_size_limit(FIELD_LIMIT)
    try:
        with _open(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=separator, strict=True)
            header = next(reader, None)
            if header is None:
                return
            doubled = sorted({name for name in header if header.count(name) > 1})
            if doubled:
                raise DataError(f"{path}: column {doubled[0]!r} occurs twice in the header")
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise DataError(
                        f"{path} line {reader.line_num}: {len(cells)} fields, the header has {len(header)}"
                    )
                if cells:
                    yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}; is the file cut off?") from None
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            doubled = [name for name in file.schema_arrow.names if file.schema_arrow.names.count(name) > 1]
            if doubled:
                raise DataError(f"{path}: column {doubled[0]!r} occurs twice")
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path}: not a readable parquet file ({lines[0][:160]})") from None
