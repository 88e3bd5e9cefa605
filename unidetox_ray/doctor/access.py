"""What lies behind an address: the hub with its gated models and data sets, and the tracking store.

Nothing here waits longer than some seconds for an answer. What is in the hub's cache counts as there.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from unidetox_ray import registry, secrecy
from unidetox_ray.doctor.checking import Line, check, fail, ok, skipped, warn
from unidetox_ray.doctor.storage import kind_of_mount, shared
from unidetox_ray.doctor.subject import Subject
from unidetox_ray.errors import ConfigError

_SECONDS = 5.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def wanted_from_hub(subject: Subject) -> list[tuple[str, str, str | None]]:
    """(model or dataset, id, revision) of everything that the experiment would take from the hub, each once."""
    experiment = subject.experiment
    if experiment is None:
        return []
    found: list[tuple[str, str, str | None]] = []
    judge = experiment.evaluate.ppl_model
    judged = [judge] if judge in registry.names("families") else []
    for family in dict.fromkeys([experiment.base_family, *experiment.families, *judged]):
        ref = experiment.model_of(str(family))
        found.append(("model", ref.source, ref.revision))
    for scorer in experiment.evaluate.scorers:
        if scorer.kind == "classifier":
            found.append(("model", scorer.source, scorer.revision))
    if judge is not None and not judged:
        found.append(("model", judge, None))
    found += [("model", each.source, each.revision) for each in experiment.content.classifiers]
    from unidetox_ray.stages.needs import needed

    wanted = needed(experiment)
    roles = ["prompts", "clean", "mmlu", "scorer"]
    if wanted.families("toxic") or wanted.fits:
        roles.append("toxic")
    for role in roles:
        source = getattr(experiment.data, role)
        entry = (
            registry.lookup("datasets", source.dataset)
            if source is not None and source.path is None
            else None
        )
        if entry is not None and entry.hub_id:
            found.append(("dataset", entry.hub_id, source.revision))
    return [each for each in dict.fromkeys(found) if _is_hub_id(each[1])]


def _is_hub_id(source: str) -> bool:
    return source != "scratch:" and not source.startswith((".", "/", "~")) and not Path(source).is_dir()


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _cached(kind: str, name: str, revision: str | None) -> bool:
    """Whether the hub's cache holds a snapshot; a model's needs its config and some weights."""
    from huggingface_hub import constants, try_to_load_from_cache

    if kind == "dataset":
        return any(Path(constants.HF_HUB_CACHE).glob(f"datasets--{name.replace('/', '--')}/snapshots/*/*"))
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return isinstance(config, str) and any(Path(config).parent.glob("*.safetensors"))


def _answers() -> str:
    """ "" when the hub takes connections, else why not."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    if proxy and parts.scheme == "https":
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return unreachable(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


def unreachable(host: str, port: int) -> str:
    """ "" when something takes connections there within seconds, else why not."""
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            return ""
    except OSError as error:
        return f"{host}:{port}: {error.strerror or error}"


@check("hub")
def hub(subject: Subject) -> Iterator[Line]:
    """The hub, then every model and data set that the experiment takes from it."""
    wanted = wanted_from_hub(subject)
    if subject.experiment is not None and not wanted:
        yield ok("not needed: every model and data set is local")
        return
    why = "HF_HUB_OFFLINE is set" if _offline() else _answers()
    token = secrecy.hub_token() is not None
    if not why:
        yield ok(f"reachable, {'with' if token else 'without'} a token of yours")
    elif not wanted:
        yield skipped(f"offline ({why}); models then come from the cache or from folders")
    for kind, name, revision in wanted:
        there = _cached(kind, name, revision)
        if there:
            yield ok(f"{kind} {name}: in the cache")
        elif why:
            yield fail(
                f"{kind} {name}: not in the cache, and offline ({why})",
                "unset HF_HUB_OFFLINE or go online once to fetch it, or name a local folder or file",
            )
        else:
            yield _access(kind, name, revision, token)


def _access(kind: str, name: str, revision: str | None, token: bool) -> Line:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    file = "config.json" if kind == "model" else "README.md"
    url = hf_hub_url(name, file, repo_type=kind, revision=revision)
    try:
        get_hf_file_metadata(url, token=secrecy.hub_token(), timeout=_SECONDS)
    except GatedRepoError:
        advice = "your token's account has not been given access" if token else "there is no token"
        return fail(
            f"{kind} {name}: gated, and {advice}",
            f"accept its terms at its page on the hub, then set HF_TOKEN or HF_TOKEN_PATH ({name})",
        )
    except RepositoryNotFoundError:
        return fail(
            f"{kind} {name}: no such {kind}, or a private one", "check the id; a private one needs HF_TOKEN"
        )
    except HfHubHTTPError as error:
        return fail(f"{kind} {name}: {str(error).splitlines()[0]}", "check the revision and the token")
    except Exception as error:  # the network stack's own classes
        return warn(
            f"{kind} {name}: {type(error).__name__}: {error}", "try again: the hub did not answer in time"
        )
    return ok(f"{kind} {name}: can be fetched")


@check("tracking")
def tracking(subject: Subject) -> Line:
    """The store's kind, whether it is there, and whether it bears what the run asks of it."""
    from unidetox_ray.tracking.address import database_file, resolve_uri, without_password

    try:
        uri = resolve_uri(subject.tracking_uri)
    except ConfigError as error:
        return fail(str(error), "set tracking.uri")
    if uri is None:
        return ok("none: nothing is recorded in MLflow")
    file = database_file(uri)
    if file is not None:
        return _database(file)
    shown, parts = without_password(uri), urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return _server(uri, shown)
    try:
        host, port = parts.hostname or "localhost", parts.port or {"mysql": 3306}.get(parts.scheme[:5], 5432)
    except ValueError as error:
        return fail(f"{shown}: {error}", "correct tracking.uri")
    why = unreachable(host, port)
    return (
        fail(f"{shown}: {why}", "start the database or correct tracking.uri")
        if why
        else ok(f"{shown}: reachable")
    )


def _database(file: Path) -> Line:
    from unidetox_ray.tracking.address import check_database

    kind = kind_of_mount(file)
    if shared(kind):
        return fail(
            f"SQLite file {file} on {kind}: its locks do not hold there, the file gets damaged",
            "put it on a local disk (tracking.uri=sqlite:////local/mlflow.db) or use an MLflow server",
        )
    if file.is_dir():
        return fail(f"{file} is a folder", f"set tracking.uri=sqlite:///{file}/mlflow.db")
    if not file.exists() or file.stat().st_size == 0:
        return ok(f"SQLite file {file}, made by the first run")
    try:
        check_database(file)
    except (ConfigError, sqlite3.Error) as error:
        said = f"SQLite file {file}: {error}" if isinstance(error, sqlite3.Error) else str(error)
        return fail(said, "move the file away, or name another tracking.uri")
    if not os.access(file, os.W_OK):
        return fail(f"SQLite file {file} cannot be written", "name another tracking.uri")
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        return warn(f"SQLite file {file}, mode {mode:04o}: other users can read it", f"chmod 600 {file}")
    return ok(f"SQLite file {file}")


def _server(uri: str, shown: str) -> Line:
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS)
    except requests.RequestException as error:
        return fail(
            f"{shown}: {type(error).__name__}", "start the server (`unidetox ui`) or correct tracking.uri"
        )
    if answer.status_code in (401, 403):
        return fail(
            f"{shown}: asks for a login",
            "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD",
        )
    if answer.status_code != 200:
        return fail(f"{shown}: answers {answer.status_code}, no MLflow server", "correct tracking.uri")
    parts = urlsplit(uri)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        return warn(f"{shown}: reachable, without TLS", "forward its port with ssh, or put TLS before it")
    return ok(f"{shown}: reachable")
