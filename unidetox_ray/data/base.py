"""The interface of a data set, and `load`, the one way from its name to a checked table.

A data set module makes a `DATASET = Dataset(...)` whose `load(role, request)` returns the table of that role.
On the way it records what it read in `request.sources` and what a reader of the results should know in
`request.notes`. Everything that holds for every data set is checked here, once: options, path, columns, ids,
splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from unidetox_ray import registry, schemas
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.secrecy import hub_token

#: What each role's table looks like, and which column identifies a row of it.
ROLES: dict[str, tuple[schemas.Schema, str]] = {
    "toxic": (schemas.TEXTS, "text_id"),
    "clean": (schemas.TEXTS, "text_id"),
    "pretrain": (schemas.TEXTS, "text_id"),
    "prompts": (schemas.PROMPTS, "prompt_id"),
    "mmlu": (schemas.QUIZ, "question_id"),
    "scorer": (schemas.LABELLED, "text_id"),
}

#: The values of `split` that a table of a role may hold.
SPLITS: dict[str, tuple[str, ...]] = {
    "toxic": ("train", "dev", "test"),
    "clean": ("train", "dev", "test"),
    "pretrain": ("train", "dev", "test"),
    "prompts": ("validation", "test"),
    "mmlu": ("dev", "validation"),
    "scorer": ("train", "dev", "test"),
}

#: Columns that may be null: an unknown target, and labels nobody annotated.
NULLABLE = {"target", *schemas.LABELS}

TOKEN_VARIABLE = "HF_TOKEN"


class Options(BaseModel):
    """Settings of one data set: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Request:
    """One call of a loader: what was asked for, and the record of what was read."""

    path: Path | None
    """Existing file or folder; None = the data set's own source (hub or generated)."""
    options: Any
    """An instance of the data set's own `options` class."""
    revision: str | None = None
    """Hub revision; None = the one the loader names, else the newest."""
    sources: dict[str, str] = field(default_factory=dict)
    """File name -> sha256 of its bytes, filled by `files.read_bytes`."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values: row counts, duplicates removed, overlap between splits ..."""

    @property
    def token(self) -> str | None:
        """The hub token, from the environment or the file it names, so that it can never reach a config, a key or a log."""
        return hub_token()


@dataclass(frozen=True)
class Dataset:
    """A registered data set. Loading its module reads no data."""

    name: str
    roles: tuple[str, ...]
    licence: str
    citation: str
    options: type[Options]
    load: Callable[[str, Request], pl.DataFrame]
    hub_id: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A checked table and where it came from."""

    table: pl.DataFrame
    sha256: str
    """Of the source's bytes (several files: of their sorted hashes); of the table where no file was read."""
    where: str
    """The path as given (absolute: its last part), "hub:<id>@<revision>" or "built in"."""
    notes: dict[str, Any]


def load(
    role: str,
    *,
    dataset: str,
    path: str | None = None,
    options: Mapping[str, Any] | None = None,
    data_root: str | None = None,
    revision: str | None = None,
) -> Loaded:
    """The table of `role` from a registered data set, checked against the role's schema.

    A relative `path` is taken from `data_root` where one is given. ConfigError: unknown data set, role or
    option. DataError: missing, unreadable or unfitting data, null text, duplicate ids, an empty table.
    """
    entry: Dataset = registry.lookup("datasets", dataset)
    if role not in ROLES:
        raise ConfigError(f"unknown data role {role!r}; {registry.suggest(role, ROLES)}")
    if role not in entry.roles:
        raise ConfigError(
            f"data set {dataset!r} has nothing for role {role!r}; it serves {', '.join(entry.roles)}"
        )
    request = Request(
        path=resolve(path, data_root),
        options=parse_options(entry, options or {}),
        revision=revision,
    )
    table = checked(entry.load(role, request), role, dataset)
    hashes = request.sources
    return Loaded(
        table=table,
        sha256=_joint_hash(hashes) if hashes else table_hash(table),
        where=_where(entry, path, request),
        notes={
            **request.notes,
            "rows": table.height,
            "splits": _counts(table, "split"),
            "files": dict(hashes),
        },
    )


def resolve(path: str | None, data_root: str | None) -> Path | None:
    """`path` below `data_root` (absolute paths stay); DataError when there is nothing there."""
    if path is None:
        return None
    place = Path(path).expanduser()
    if data_root is not None:
        place = Path(data_root).expanduser() / place
    try:
        there = place.exists()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{str(place)[:200]}: is no path ({getattr(error, 'strerror', None) or error}); check `path`"
        ) from None
    if not there:
        tail = "" if data_root is not None or place.is_absolute() else " (data.data_root is not set)"
        raise DataError(f"no such file or folder: {place}{tail}; check `path` and `data_root`")
    return place


def parse_options(entry: Dataset, options: Mapping[str, Any]) -> Options:
    """The data set's typed options; ConfigError naming the option, its value and what is accepted."""
    for key in options:
        if key not in entry.options.model_fields:
            accepted = registry.suggest(str(key), entry.options.model_fields)
            raise ConfigError(f"data set {entry.name!r}: unknown option {key!r}; {accepted}")
    try:
        return entry.options.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        spot = ".".join(str(part) for part in first["loc"]) or "options"
        raise ConfigError(
            f"data set {entry.name!r}: option {spot} = {first['input']!r}: {first['msg']}"
        ) from error


def checked(table: pl.DataFrame, role: str, where: str) -> pl.DataFrame:
    """`table` in the role's schema, with unique ids, known splits and no null where text is expected."""
    schema, key = ROLES[role]
    table = schemas.check(table, schema, where)
    if table.is_empty():
        raise DataError(f"{where}: no rows for role {role!r}; check the file and the data set's options")
    for name in schema:
        nulls = table[name].null_count()
        if nulls and name not in NULLABLE:
            raise DataError(f"{where}: column {name!r} is null in {nulls} of {table.height} rows")
    doubled = table.filter(pl.col(key).is_duplicated())
    if doubled.height:
        raise DataError(
            f"{where}: {key} {doubled[key][0]!r} occurs more than once ({doubled.height} such rows)"
        )
    unknown = set(table["split"].unique()) - set(SPLITS[role])
    if unknown:
        raise DataError(f"{where}: unknown split {min(unknown)!r}; accepted: {', '.join(SPLITS[role])}")
    return table


def need_path(request: Request, dataset: str, what: str) -> Path:
    """The path of a data set that has no source of its own; ConfigError saying what it should hold."""
    if request.path is None:
        raise ConfigError(f"data set {dataset!r} needs `path`: {what}")
    return request.path


def hash_share(text: str, salt: str) -> float:
    """A number in [0, 1) fixed by `text` and `salt`: a text falls in the same part on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64


def table_hash(table: pl.DataFrame) -> str:
    """sha256 of the column names, dtypes and rows (as JSON lines), for data that came from no file."""
    digest = hashlib.sha256(str([(name, str(dtype)) for name, dtype in table.schema.items()]).encode())
    digest.update(table.write_ndjson().encode())
    return digest.hexdigest()


def _joint_hash(hashes: Mapping[str, str]) -> str:
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(
        "".join(f"{name} {sha}\n" for name, sha in sorted(hashes.items())).encode()
    ).hexdigest()


def _where(entry: Dataset, path: str | None, request: Request) -> str:
    if path is not None:
        # An absolute path names the machine; its last part is enough, the hash identifies the content.
        return Path(path).name if Path(path).expanduser().is_absolute() or path.startswith("~") else path
    if entry.hub_id is not None:
        return f"hub:{entry.hub_id}@{request.revision or 'main'}"
    return "built in"


def _counts(table: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(table.group_by(column).len().sort(column).rows())
