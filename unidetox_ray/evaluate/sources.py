"""What an argument of `evaluate` names: a model, or a file of generations from anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from unidetox_ray.artifacts import file_sha256
from unidetox_ray.errors import ConfigError, DataError, ModelError
from unidetox_ray.evaluate import reading
from unidetox_ray.evaluate.columns import columns_of
from unidetox_ray.evaluate.store import Parts, finished, normalised, store
from unidetox_ray.hashing import digest

#: Rows by which the columns of a file are found.
_SAMPLE, _SAMPLE_CHARACTERS = 1000, 2**25


@dataclass(frozen=True)
class Source:
    """One argument. `label`: how results call it. `revision`: of a hub id, behind its @."""

    given: str
    kind: Literal["file", "model", "endpoint"]
    label: str
    path: Path | None = None
    model: str = ""
    revision: str | None = None


def sources_of(given: Sequence[str]) -> list[Source]:
    """The arguments in their order, each with a label of its own. ConfigError, DataError, ModelError for what is neither."""
    found = [_source(text) for text in given]
    twice = [text for text, times in Counter(given).items() if times > 1]
    if twice:
        raise ConfigError(f"{twice[0]}: is given twice; a source is compared with another one")
    names = distinct([(source.label, _folder(source)) for source in found])
    return [Source(**{**vars(source), "label": name}) for source, name in zip(found, names, strict=True)]


def distinct(names: Sequence[tuple[str, str]]) -> list[str]:
    """(name, what tells it from others of the same name) -> names that differ: the folder before it, then a number."""
    times = Counter(name for name, _ in names)
    taken: set[str] = set()
    made = []
    for name, folder in names:
        base = name if times[name] == 1 or not folder else f"{folder}/{name}"
        label, number = base, 2
        while label in taken:
            label, number = f"{base} ({number})", number + 1
        taken.add(label)
        made.append(label)
    return made


def _folder(source: Source) -> str:
    place = source.path or (Path(source.model) if Path(source.model).is_dir() else None)
    return "" if place is None else place.expanduser().absolute().parent.name


def _source(text: str) -> Source:
    if text.startswith(("http://", "https://")):
        raise ConfigError(
            f"{text}: an address is no source; give it as --endpoint {text}, and its model as --model NAME"
        )
    path = Path(text).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
        there = path.exists()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{text[:200]!r}: is no path ({getattr(error, 'strerror', None) or error})"
        ) from None
    kind = reading.kind_of(path)
    if is_folder:
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{text}: holds no config.json; give a model folder that `save_pretrained` wrote, or a file of generations"
            )
        return Source(text, "model", path.absolute().name, model=text)
    if is_file:
        if kind is None:
            raise DataError(f"{text}: cannot read such a file; accepted: {', '.join(reading.TABLES)}")
        return Source(text, "file", _stem(path), path=path)
    if there:
        raise DataError(
            f"{text}: is neither a file nor a folder; accepted: {', '.join(reading.TABLES)} or a model folder"
        )
    if kind is not None or text.startswith((".", "/", "~")) or text.count("/") > 1 or not text.strip():
        raise DataError(f"{text or repr(text)}: no such file or folder")
    model, _, revision = text.partition("@")
    return Source(text, "model", text, model=model, revision=revision or None)


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name[: name.rfind(".")] or name


def _first(rows: Iterator[reading.Row]) -> list[reading.Row]:
    """Rows by which the columns are found: fewer where they are long, for they are held together."""
    found: list[reading.Row] = []
    size = 0
    for row in islice(rows, _SAMPLE):
        found.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if size > _SAMPLE_CHARACTERS:
            break
    return found


def read(source: Source, given: Mapping[str, str], work: Path, limit: int | None = None) -> tuple[Parts, str]:
    """The generations of a file as parts below `work`, read anew unless they lie there; and the file's sha256.

    limit: of its rows at most so many.
    """
    assert source.path is not None
    try:
        sha256 = file_sha256(source.path)
    except OSError as error:
        raise DataError(f"{source.given}: cannot be read ({error.strerror})") from None
    folder = work / f"file-{digest([sha256, dict(given), source.label, limit])[:16]}"
    kept = finished(folder)
    if kept is not None:
        return kept, sha256
    rows = islice(reading.rows_of(source.path), limit)
    first = _first(rows)
    separated = reading.kind_of(source.path) in (".csv", ".tsv")
    columns = columns_of(first, given, source.given, separated=separated)
    parts = store(
        folder, normalised(chain(first, rows), columns, source.label), told=columns.told(),
        explicit="prompt_id" in columns.taken, has_prompts="prompt" in columns.taken, has_domains="domain" in columns.taken,
    )  # fmt: skip
    return parts, sha256
