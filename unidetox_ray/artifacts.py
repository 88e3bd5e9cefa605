"""Where things are kept and when they count as done.

A unit of work owns a folder named by the hash of its own settings and its inputs' keys. Its `manifest.json` is written last, by
atomic rename: present = done, absent = redo. Files of a finished folder are checked against the hashes in its manifest.

    <storage>/<experiment>/stages/<stage>-<key>/manifest.json
    <storage>/<experiment>/models/<cell>-<key>/manifest.json
    <storage>/cache/<model>-<key>/manifest.json
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import __version__, warned
from unidetox_ray.errors import ArtifactError, ConfigError
from unidetox_ray.hashing import digest
from unidetox_ray.secrecy import redacted

MANIFEST = "manifest.json"
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "ray",
    "deepspeed",
    "mlflow",
    "polars",
    "datasets",
    "peft",
    "numpy",
)

#: Files above this are checked by size alone when a finished folder is reused.
_HASH_ON_REUSE_BYTES = 64 << 20


@dataclass(frozen=True)
class Manifest:
    """What a finished folder holds and what it was made from."""

    stage: str
    key: str
    created: str
    seconds: float
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    sizes: dict[str, int]
    counts: dict[str, int]
    extra: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)


def key_for(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """A 16-digit key; equal keys mean equal results."""
    return digest({"stage": stage, "config": config, "inputs": dict(inputs)})[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def private_folder(path: Path) -> Path:
    """The folder, made if need be, readable by its owner only: what we store can be hateful."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"storage: {path} cannot be made or written ({error.strerror}); give a folder you own"
        ) from None
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


#: What `mkstemp` makes of the prefix that `atomic_path` gives it.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")


def clear_temporaries(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left directly in `folder`. Nobody else may write there now."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """UTF-8, owner only, secrets of this process blanked out: an error that a library worded may hold one."""
    text = redacted(text)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, default=str) + "\n")


def write_parquet(path: Path, table: pl.DataFrame, metadata: Mapping[str, str] | None = None) -> None:
    """The same table gives the same bytes: fixed compression and row groups, no timestamps. Tables of text carry a warning.

    metadata: words of its own in the file's footer.
    """
    said = {**(warned.metadata_of(table.columns) or {}), **(metadata or {})}
    with atomic_path(path) as temporary:
        try:
            table.write_parquet(
                temporary, compression="zstd", row_group_size=1 << 17, statistics=True, metadata=said or None
            )
        except pl.exceptions.ComputeError as error:
            # What the system refuses comes out of the parquet writer as words.
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def write_corpus_csv(path: Path, texts: Sequence[str]) -> None:
    """A corpus in the released layout (column `Text`), cells safe in a spreadsheet, its warning beside it."""
    write_plain(path, warned.corpus_csv(texts))
    describe(path)


def write_jsonl(path: Path, table: pl.DataFrame) -> None:
    """One JSON object a line; a table of text has its warning beside it."""
    with atomic_path(path) as temporary:
        table.write_ndjson(temporary)
    if warned.metadata_of(table.columns):
        describe(path)


def write_plain(path: Path, text: str) -> None:
    """UTF-8 as it is, owner only: for texts of a corpus, which nothing may change."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)


def describe(path: Path) -> None:
    """Say beside a csv or jsonl file what it holds."""
    write_json(warned.metadata_path(path), {"url": path.name, warned.KEY: warned.WARNING})


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: is missing; run the stage that writes it again") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: damaged ({' '.join(str(error).split())[:100]}); delete it and run the same command again"
        ) from None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished folder, or None when the folder is not finished."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    values = read_json(path)
    try:
        return Manifest(**values)
    except TypeError as error:
        raise ArtifactError(
            f"{path}: not a manifest of this version ({error}); run again with --fresh"
        ) from None


def finished(folder: Path, key: str) -> Manifest | None:
    """The manifest if the folder is finished under this key and its files are what the manifest says.

    None = not finished (or made under another key). ArtifactError = finished once, damaged since.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.key != key:
        return None
    for name, expected in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.exists() else -1
        if size != manifest.sizes.get(name):
            raise ArtifactError(
                f"{path}: {'missing' if size < 0 else f'{size} bytes, not {manifest.sizes.get(name)}'}; run again with --fresh to rebuild it"
            )
        if size <= _HASH_ON_REUSE_BYTES and file_sha256(path) != expected:
            raise ArtifactError(
                f"{path}: its hash differs from its manifest's; run again with --fresh to rebuild it"
            )
    return manifest


def write_manifest(
    folder: Path,
    *,
    stage: str,
    key: str,
    seconds: float,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    counts: Mapping[str, int] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hash every file in `folder` and declare it finished.

    Returns what a later run reads there: values that went through JSON, keys sorted, tuples as lists. A number recorded from
    a fresh manifest is so the one recorded from a reused one.
    """
    paths = sorted(
        p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and not p.name.startswith(".")
    )
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    manifest = Manifest(
        stage=stage,
        key=key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        config=dict(config),
        inputs=dict(inputs),
        files={names[path]: file_sha256(path) for path in paths},
        sizes={names[path]: path.stat().st_size for path in paths},
        counts=dict(counts or {}),
        extra=dict(extra or {}),
        versions=versions(),
        code=code_version(),
    )
    write_json(folder / MANIFEST, asdict(manifest))
    written = read_manifest(folder)
    assert written is not None
    return written


@cache
def versions() -> dict[str, str]:
    """Installed versions of what can change a number, none of it imported; "absent" for what is missing."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


@cache
def code_version() -> dict[str, str]:
    """This package's version and, from a git checkout, its commit ("-dirty" behind it when tracked files differ)."""
    folder = Path(__file__).resolve().parent

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        # A package installed below somebody else's checkout is not part of it; a tag's name is no commit.
        ask("ls-files", "--error-unmatch", Path(__file__).name)
        commit = ask("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return {"version": __version__, "git": commit}


class RunFolder:
    """`<storage>/<experiment>`: the folder of one experiment."""

    def __init__(self, storage: Path, name: str, cache: Path | None = None) -> None:
        self.root = private_folder((storage / name).absolute())
        self.cache = private_folder((cache or storage / "cache").absolute())

    def stage(self, stage: str, key: str) -> Path:
        return self.root / "stages" / f"{stage}-{key}"

    def model(self, cell: str, key: str) -> Path:
        return self.root / "models" / f"{cell}-{key}"

    def forget(self) -> None:
        """Remove what runs of this experiment made here; scratch models in the cache stay."""
        for name in ("stages", "models", "corpora"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in self.root.iterdir():
            if path.is_file() and path.suffix in {".json", ".parquet", ".csv", ".html", ".md", ".yaml"}:
                path.unlink()
