"""The MLflow page on this machine (`unidetox ui`), and a plain reader of what is stored."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from unidetox_ray.errors import ConfigError
from unidetox_ray.tracking.address import (
    ACCEPTED,
    connect,
    database_file,
    resolve_uri,
    store_errors,
    without_password,
)
from unidetox_ray.tracking.views import CELLS, VIEW_TAG, view_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

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


def ui_url(uri: str, experiment: str | None = None, port: int = 5000, view: str = CELLS) -> str:
    """Address of a view of an experiment (`views`), by default of its families and methods side by side.

    experiment: its name, with or without `unidetox/`; None = the one that a run was last recorded in. The start page where
    the store has no such experiment. ConfigError: the store cannot be read.
    """
    address = resolve_uri(uri)
    file = database_file(address) if address else None
    start = address if address and address.startswith("http") else f"http://{LOOPBACK}:{port}"
    if address is None or (file is not None and not file.exists()):
        return f"{start}/"
    with store_errors(without_password(address), "be read", ConfigError):
        client = connect(address)
        if experiment is None:
            found = _latest(client)
        else:
            names = (experiment, f"unidetox/{experiment}")
            found = next(filter(None, map(client.get_experiment_by_name, names)), None)
    if found is None:
        return f"{start}/"
    if f"{VIEW_TAG}{view}" not in found.tags:
        return f"{start}/#/experiments/{found.experiment_id}/runs?workflowType=machine_learning"
    return f"{start}{view_path(found.experiment_id, view)}"


def _latest(client: MlflowClient) -> Experiment | None:
    """The experiment with the newest run; None where there is no run."""
    experiments = {each.experiment_id: each for each in client.search_experiments(max_results=1000)}
    runs = client.search_runs(list(experiments), max_results=1, order_by=["attributes.start_time DESC"])
    return experiments[runs[0].info.experiment_id] if runs else None


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
