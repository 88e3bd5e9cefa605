"""The storage: whether it takes files and locks, who else can read it, and whether toxic models in it say that they are."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from unidetox_ray import warned
from unidetox_ray.doctor.checking import Line, check, fail, ok, skipped, warn
from unidetox_ray.doctor.subject import Subject, existing

#: File systems that other machines see too, and where a file lock may not hold.
NETWORK_KINDS = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "fuse.",
    "afs",
    "efs",
    "wekafs",
)
_MARK = "do-not-deploy"
#: A listing longer than this is cut: the remedy is the same for all.
_NAMED = 3


def kind_of_mount(path: Path) -> str:
    """The kind of file system that holds `path`, or its nearest parent; "" where the system does not say."""
    import psutil

    place = str(existing(path).resolve())
    holding = [
        part
        for part in psutil.disk_partitions(all=True)
        if place == part.mountpoint or place.startswith(part.mountpoint.rstrip("/") + "/")
    ]
    return max(holding, key=lambda part: len(part.mountpoint)).fstype if holding else ""


def shared(kind: str) -> bool:
    return any(kind.startswith(each) for each in NETWORK_KINDS)


@check("storage")
def storage(subject: Subject) -> Line:
    folder = subject.folder
    return _remote(subject.storage) if folder is None else _local(folder)


def _local(folder: Path) -> Line:
    place = existing(folder)
    kind = kind_of_mount(folder)
    where = f"{folder} ({kind})" if kind else str(folder)
    if not place.is_dir():
        return fail(f"{where}: {place} is a file", "name another storage=")
    probe = place / f".unidetox-doctor-{secrets.token_hex(8)}"
    try:
        with probe.open("xb") as stream:
            stream.write(b"x" * 4096)
            stream.flush()
            os.fsync(stream.fileno())
        probe.replace(probe.with_suffix(".moved"))
    except OSError as error:
        return fail(
            f"{where}: {place} cannot be written ({error.strerror})",
            "name a storage= that you own, with space left",
        )
    finally:
        probe.unlink(missing_ok=True)
        probe.with_suffix(".moved").unlink(missing_ok=True)
    if not _locks(place):
        return warn(
            f"{where}: can be written, has no file locks",
            "give every run a name of its own: two runs of one name would mix their files",
        )
    if kind in ("tmpfs", "ramfs"):
        return warn(f"{where}: can be written, and is gone at the next start", "name a storage= on a disk")
    return ok(f"{where}: can be written, has file locks")


def _locks(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    place = folder / f".unidetox-doctor-{secrets.token_hex(8)}.lock"
    try:
        with FileLock(place, timeout=5):
            return True
    except (NotImplementedError, Timeout, OSError):
        return False
    finally:
        place.unlink(missing_ok=True)


def _remote(url: str) -> Line:
    """An object store: a small object is written, read and removed."""
    import fsspec

    name = f"{url.rstrip('/')}/.unidetox-doctor-{secrets.token_hex(8)}"
    try:
        files, path = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:
        return fail(f"{url}: {error}", "install its driver (s3fs, gcsfs) or name a folder")
    try:
        files.makedirs(os.path.dirname(path), exist_ok=True)
        files.pipe_file(path, b"x")
        same = files.cat_file(path) == b"x"
        files.rm_file(path)
    except Exception as error:  # a driver raises its network library's own classes; all mean the same here
        return fail(
            f"{url}: {type(error).__name__}: {error}", "check the address, the network and the credentials"
        )
    if not same:
        return fail(f"{url}: what was written is not what is read", "name another storage")
    return ok(f"{url}: can be written and read; it serves runs on one node")


def _runs(folder: Path) -> Iterator[Path]:
    """Run folders below the storage, and its cache."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return
    for each in found:
        if each.is_dir() and ((each / "config.yaml").is_file() or each.name == "cache"):
            yield each


@check("permissions")
def permissions(subject: Subject) -> Line:
    folder = subject.folder
    if folder is None or not folder.is_dir():
        return skipped(
            f"{subject.storage}: no run folder on this machine yet; a run makes its own with mode 0700"
        )
    runs = list(_runs(folder))
    open_to_others = [each for each in runs if stat.S_IMODE(each.stat().st_mode) & 0o077]
    foreign = [each for each in runs if each.stat().st_uid != os.getuid()]
    if open_to_others:
        names = ", ".join(
            f"{each.name} {stat.S_IMODE(each.stat().st_mode):04o}" for each in open_to_others[:_NAMED]
        )
        return warn(
            f"{len(open_to_others)} of {len(runs)} run folders can be read by other users ({names}); they hold hateful text",
            f"chmod -R go= {folder}",
        )
    if foreign:
        return warn(
            f"{len(foreign)} of {len(runs)} run folders belong to another user ({foreign[0].name})",
            "use a storage of your own",
        )
    return ok(f"{len(runs)} run folders under {folder}, none open to other users")


@check("toxic models")
def toxic_models(subject: Subject) -> Line:
    """Every model that was made to write hateful text says so in its card, which is what `export` and people go by."""

    def bad(silent: list[Path]) -> Line:
        return fail(
            f"{len(silent)} toxic models without {_MARK} in their card (first: {silent[0]})",
            "delete them, or run their experiment again with --fresh, which writes the card",
        )

    return _all_marked(
        subject, _toxic_models, bad, f"toxic models under {subject.folder}, each marked {_MARK}"
    )


@check("text files")
def text_files(subject: Subject) -> Line:
    """Every table of a run that holds text says that it can be hateful: in its metadata, or beside it."""

    def bad(silent: list[Path]) -> Line:
        return warn(
            f"{len(silent)} files of text do not say that it can be hateful (first: {silent[0]})",
            "delete them, or make them again with `unidetox run`, which writes the warning",
        )

    return _all_marked(
        subject, _text_files, bad, f"files of text under {subject.folder}, each with its content warning"
    )


def _all_marked(
    subject: Subject,
    found_in: Callable[[Path], Iterator[tuple[Path, bool]]],
    bad: Callable[[list[Path]], Line],
    good: str,
) -> Line:
    """found_in: of a run, each place and whether it is marked. bad: the line for those that are not. good: said behind the
    number of places where all are."""
    folder = subject.folder
    if folder is None or not folder.is_dir():
        return skipped(f"{subject.storage}: no run folder on this machine yet")
    found = [each for run in _runs(folder) for each in found_in(run)]
    silent = [place for place, marked in found if not marked]
    return bad(silent) if silent else ok(f"{len(found)} {good}")


def _toxic_models(run: Path) -> Iterator[tuple[Path, bool]]:
    """(folder, whether its card has the mark) of each; a model of which nothing says what it is counts as one without."""
    for settings in sorted(run.glob("models/*/settings.json")):
        try:
            values = json.loads(settings.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            yield settings.parent, False
            continue
        if isinstance(values, dict) and values.get("do_not_deploy"):
            card = settings.with_name("README.md")
            marked = card.is_file() and _MARK in card.read_text(encoding="utf-8", errors="replace")
            yield settings.parent, marked


def _text_files(run: Path) -> Iterator[tuple[Path, bool]]:
    """(path, whether it has its content warning) of each; a file that nobody can read counts as one of text."""
    import polars as pl

    for path in sorted(
        [*run.glob("*.parquet"), *run.glob("corpora/*.parquet"), *run.glob("stages/*/*.parquet")]
    ):
        try:
            warns = warned.KEY in pl.read_parquet_metadata(path)
            text = warned.metadata_of(pl.read_parquet_schema(path)) is not None
        except (OSError, pl.exceptions.PolarsError):
            warns, text = False, True
        if text:
            yield path, warns
    for path in sorted([*run.glob("*.csv"), *run.glob("*.jsonl")]):
        try:
            read = pl.read_csv if path.suffix == ".csv" else pl.read_ndjson
            text = warned.metadata_of(read(path, n_rows=1).columns) is not None
        except (OSError, pl.exceptions.PolarsError):
            text = True
        if text:
            yield path, warned.metadata_path(path).is_file()
