"""The MLflow page on this machine (`unidetox ui`), and a plain reader of what is stored."""

from __future__ import annotations

import json
import sys
from typing import Any

from unidetox_ray.errors import ConfigError
from unidetox_ray.tracking.address import (
    ACCEPTED,
    connect,
    database_file,
    resolve_uri,
    store_errors,
    without_password,
)

LOOPBACK = "127.0.0.1"


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """Command line of the MLflow server for a SQLite store, on loopback with one worker (fewer processes).

    Start it with `ui_environment()`. ConfigError where there is nothing to serve: no store, a server (open
    its address instead), a database address whose password would show in the process list, a bad port.
    """
    address = resolve_uri(uri)
    if address is None:
        raise ConfigError(f"tracking.uri {uri!r}: nothing is recorded, so there is no page; {ACCEPTED}")
    file = database_file(address)
    if file is None:
        shown = without_password(address)
        raise ConfigError(f"tracking.uri {shown!r}: open its own page; this one is for SQLite files")
    if not file.exists():
        raise ConfigError(f"tracking.uri {address!r}: the file does not exist; run an experiment first")
    if not 0 < port < 65536:
        raise ConfigError(f"port {port}: accepted: 1 to 65535")
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address]
    return [*server, "--host", LOOPBACK, "--port", str(port), "--workers", "1"]


def ui_environment() -> dict[str, str]:
    """Variables to add for `ui_command`: no usage reports, no job workers that this page does not need."""
    return {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def ui_url(uri: str, experiment: str | None, port: int = 5000) -> str:
    """Address of an experiment's runs on the page; the start page when the store has no such experiment."""
    address = resolve_uri(uri)
    file = database_file(address) if address else None
    start = address if address and address.startswith("http") else f"http://{LOOPBACK}:{port}"
    if address is None or experiment is None or (file is not None and not file.exists()):
        return f"{start}/"
    with store_errors(without_password(address), "be read", ConfigError):
        found = connect(address).get_experiment_by_name(experiment)
    return f"{start}/#/experiments/{found.experiment_id}/runs" if found else f"{start}/"


def read_runs(uri: str, experiment: str) -> list[dict[str, Any]]:
    """Every run of an experiment, oldest first, as plain values.

    Keys: run_id, name, status, parent (run id or None), kind, key, tags, params, metrics (last values),
    inputs (list of {name, digest, context, rows, source}), artifacts (names at the top), start, end (ms or
    None).
    """
    address = resolve_uri(uri)
    if address is None:
        return []
    if (file := database_file(address)) is not None and not file.exists():
        raise ConfigError(f"tracking.uri {address!r}: the file does not exist; run an experiment first")
    rows: list[dict[str, Any]] = []
    with store_errors(without_password(address), "be read", ConfigError):
        client = connect(address)
        found = client.get_experiment_by_name(experiment)
        token: str | None = None
        while found is not None:
            page = client.search_runs(
                [found.experiment_id],
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                tags = dict(run.data.tags)
                inputs = [
                    {
                        "name": entry.dataset.name,
                        "digest": entry.dataset.digest,
                        "context": {t.key: t.value for t in entry.tags}.get("mlflow.data.context"),
                        "rows": json.loads(entry.dataset.profile or "{}").get("num_rows"),
                        "source": entry.dataset.source,
                    }
                    for entry in (run.inputs.dataset_inputs if run.inputs else [])
                ]
                rows.append(
                    {
                        "run_id": run.info.run_id,
                        "name": run.info.run_name,
                        "status": run.info.status,
                        "parent": tags.get("mlflow.parentRunId"),
                        "kind": tags.get("unidetox.kind"),
                        "key": tags.get("unidetox.key"),
                        "tags": tags,
                        "params": dict(run.data.params),
                        "metrics": dict(run.data.metrics),
                        "inputs": inputs,
                        "artifacts": [file.path for file in client.list_artifacts(run.info.run_id)],
                        "start": run.info.start_time,
                        "end": run.info.end_time,
                    }
                )
            token = page.token
            if not token:
                break
    return rows
