"""Which store a `tracking.uri` names, and its first creation.

MLflow 3.17 migrates a new SQLite file in place and without a lock when a client opens it: two processes that
do so at once leave a half-migrated file that never opens again. Here one process creates the database under
a file lock, beside its final place, and renames it: a file that exists is whole, also when its creator was
killed.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unidetox_ray.errors import ConfigError, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ACCEPTED = "accepted: sqlite:////absolute/path/mlflow.db, http(s)://server, postgresql:, mysql:, mssql:, none"
SQLITE = "sqlite:///"
#: Creating a database takes 1-2 s; a lock that is held this long belongs to a process that hangs.
LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Store:
    """An opened experiment. `shown` is the address without a password, for messages."""

    client: MlflowClient
    uri: str
    shown: str
    experiment: str
    experiment_id: str


def resolve_uri(uri: str) -> str | None:
    """The address in the one form used from here on: None records nothing, SQLite paths are absolute.

    Raises ConfigError for stores that MLflow gave up (folders), for SQLite in memory and for unknown schemes.
    """
    uri = uri.strip()
    if uri.lower() in ("", "none"):
        return None
    scheme, colon, rest = uri.partition(":")
    where = f"tracking.uri {without_password(uri)!r}"
    if not colon or scheme == "file":
        folder = rest.lstrip("/") if colon else uri
        raise ConfigError(
            f"{where}: MLflow no longer writes to plain folders; use {SQLITE}{folder or 'mlruns'}/mlflow.db; "
            f"{ACCEPTED}"
        )
    if scheme == "sqlite":
        path = uri.removeprefix(SQLITE)
        if path == uri or not path or path.startswith(":memory:") or "?" in path or path.endswith("/"):
            raise ConfigError(f"{where}: needs the path of one database file; {ACCEPTED}")
        # Ray workers and jobs run in other folders: a relative path would mean another file there.
        return SQLITE + str(Path(path).expanduser().absolute())
    if scheme.partition("+")[0] in ("http", "https", "postgresql", "mysql", "mssql"):
        return uri
    raise ConfigError(f"{where}: unknown kind of store {scheme!r}; {ACCEPTED}")


def without_password(uri: str) -> str:
    """The address with any `user:password@` cut out."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def database_file(uri: str) -> Path | None:
    """The file behind a resolved SQLite address, None for every other store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def quiet() -> None:
    """Import settings for mlflow: no usage reports to its makers, no INFO lines or bars, few retries.

    Call before the first `import mlflow`; variables that a user has set stay as they are.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_DISABLE_AGENT_HINT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow  # noqa: F401  (its import sets the levels that are changed below)

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def store_errors(shown: str, what: str, error: type[Exception] = TrackingError) -> Iterator[None]:
    """Turn what MLflow, its database or its folder raise into one line naming the store and the action."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error) as problem:
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        raise error(f"MLflow store {shown}: cannot {what}: {without_password(lines[0])[:300]}") from problem


def connect(uri: str) -> MlflowClient:
    """A client of an existing store; it neither sets nor reads MLflow's process-wide state."""
    quiet()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def open_store(uri: str, experiment: str, artifact_root: Path | None) -> Store | None:
    """Open (and first create) the store and the experiment; None where nothing is to be recorded."""
    address = resolve_uri(uri)
    if address is None:
        return None
    if not experiment.strip():
        raise ConfigError("tracking: the experiment name is empty; give the experiment a name")
    quiet()
    shown = without_password(address)
    file = database_file(address)
    if artifact_root is None and file is not None:
        artifact_root = file.parent / "artifacts"
    with store_errors(shown, "be opened", ConfigError):
        if file is not None:
            _private_folder(file.parent)
        if artifact_root is not None:
            artifact_root = artifact_root.expanduser().absolute()
            _private_folder(artifact_root)
            artifact_root.chmod(0o700)
        with _locked(file):
            if file is not None:
                _create_database(file, artifact_root or file.parent)
            client = connect(address)
            experiment_id = _experiment_id(client, experiment, artifact_root)
    return Store(client, address, shown, experiment, experiment_id)


def _private_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


@contextmanager
def _locked(file: Path | None) -> Iterator[None]:
    """Hold the lock beside a SQLite file; servers and other databases look after themselves."""
    if file is None:
        yield
        return
    from filelock import FileLock, Timeout

    lock = file.with_name(file.name + ".lock")
    try:
        with FileLock(lock, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise ConfigError(
            f"tracking.uri {SQLITE}{file}: another process has held {lock.name} for {LOCK_SECONDS:.0f} s; "
            "end that process and run again"
        ) from None


def check_database(file: Path) -> None:
    """ConfigError unless the file is a whole MLflow database; it is only read. sqlite3.Error where it is no database."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        listing = database.execute("SELECT name FROM sqlite_master WHERE type='table'")
        tables = {name for (name,) in listing}
    half_migrated = any(name.startswith("_alembic_tmp") for name in tables)
    if half_migrated or not {"experiments", "runs", "alembic_version"} <= tables:
        raise ConfigError(
            f"tracking.uri {SQLITE}{file}: the file is not a whole MLflow database; name another file or "
            "move this one away"
        )


def _create_database(file: Path, artifact_root: Path) -> None:
    """Create `file` unless it is there; a file of another program is refused and left as it is."""
    if file.exists() and file.stat().st_size > 0:
        check_database(file)
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for leftover in file.parent.glob(f"{file.name}.new-*"):  # of a creator that was killed; we hold the lock
        leftover.unlink()
    unfinished = file.with_name(f"{file.name}.new-{os.getpid()}")
    store = SqlAlchemyStore(SQLITE + str(unfinished), str(artifact_root))  # type: ignore[no-untyped-call]
    store.engine.dispose()
    unfinished.chmod(0o600)
    unfinished.replace(file)


def _experiment_id(client: MlflowClient, name: str, artifact_root: Path | None) -> str:
    """Id of the experiment, created or taken back from the bin where needed."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = artifact_root.as_uri() if artifact_root else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # somebody else's create on a shared server came first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    _check_artifact_location(name, found.artifact_location)
    return found.experiment_id


def _check_artifact_location(name: str, location: str) -> None:
    """MLflow fixes an experiment's folder for good; say so before hours of work when it cannot be written."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    if not is_local_uri(location):  # type: ignore[no-untyped-call]
        return
    folder = Path(local_file_uri_to_path(location))  # type: ignore[no-untyped-call]
    try:
        _private_folder(folder)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ConfigError(
            f"tracking: the experiment {name!r} of this store keeps its artifacts in {folder}, which cannot "
            "be written (was the store moved?); use another tracking.uri or experiment name"
        )
