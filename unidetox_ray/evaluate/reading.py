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
        yield from _lines(path) if _is_lines(path) else _array(path)
    elif kind in (".csv", ".tsv"):
        yield from _separated(path, "\t" if kind == ".tsv" else ",")
    else:
        yield from _lines(path)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _is_lines(path: Path) -> bool:
    """Whether a .json file holds an object a line, as several programs write it."""
    with _open(path) as stream:
        first, second = islice(chain((line for line in stream if line.strip()), [b"", b""]), 2)
    try:
        return bool(second) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if len(line) >= LONGEST_LINE:
                raise DataError(f"{path} line {number}: is longer than {LONGEST_LINE >> 20} MiB")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.lstrip()[:1] == b"[":  # an array under the name of a file of lines
                    yield from _array(path)
                    return
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
        # {"results": […]}: the one list of objects in it; else the object is the only row, unless it is a table by columns.
        lists = [
            each for each in found.values() if each and isinstance(each, list) and isinstance(each[0], dict)
        ]
        by_column = all(isinstance(each, dict) for each in found.values())
        found = lists[0] if len(lists) == 1 else found if by_column else [found]
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
            if len(header) == 1 and any(other in header[0] for other in ";\t|"):
                wanted = "tabs" if separator == "\t" else "commas"
                raise DataError(
                    f"{path}: the header {header[0][:60]!r} is one column; separate columns by {wanted}"
                )
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
            schema = file.schema_arrow
            doubled = [name for name in schema.names if schema.names.count(name) > 1]
            if doubled:
                raise DataError(f"{path}: column {doubled[0]!r} occurs twice")
            numbers = [field.name for field in schema if _is_vector(field.type)]
            wanted = [name for name in schema.names if name not in numbers]
            for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
                columns = [_readable(batch.column(name)) for name in wanted]
                for row in pa.RecordBatch.from_arrays(columns, wanted).to_pylist():
                    yield {**dict.fromkeys(numbers), **row}
    except pa.ArrowException as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path}: not a readable parquet file ({lines[0][:160]})") from None


def _is_vector(kind: Any) -> bool:
    """Whether a column holds lists of numbers (token ids, embeddings), which no text is in, and which cost much to read."""
    from pyarrow import types

    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and types.is_primitive(kind.value_type)


def _readable(column: Any) -> Any:
    """The column with times as numbers, for Python has no counterpart to some, and with bytes that are UTF-8 as text, which
    some programs do not mark as such."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_binary(column.type) or types.is_large_binary(column.type):
        try:
            return column.cast(pa.large_string())
        except pa.ArrowInvalid:
            return column
    kind = _without_times(column.type)
    return column if kind == column.type else column.cast(kind)


def _without_times(kind: Any) -> Any:
    import pyarrow as pa
    from pyarrow import types

    if types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if types.is_struct(kind):
        return pa.struct([field.with_type(_without_times(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        made = pa.large_list if types.is_large_list(kind) else pa.list_
        return made(kind.value_field.with_type(_without_times(kind.value_type)))
    return kind
