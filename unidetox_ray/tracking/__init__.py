"""Experiment tracking with MLflow: the only package that imports mlflow, on the driver, with one writer.

    address   which store a `tracking.uri` names; the first creation of a database
    names     metric, parameter and tag names and values that MLflow accepts
    runs      one run (`ChildRun`): metrics, parameters, datasets, tables, artifacts, its end
    writer    which process records a run, and whether it still lives
    journal   what waits while the store does not answer
    tracker   `Tracker`: the parent run of a submission and its children; resumption and clean-up
    null      the same calls doing nothing, for `tracking.uri: none`
    results   results.json rows as metrics, per-domain tables and a leaderboard
    content   content.json as metrics of the parent run
    page      the MLflow page (`unidetox ui`) and a plain reader

What a submission looks like in the store: one *parent* run; under it a run per cell and for the toxic
model, the corpus, the models and the search; under the search run its trials (`mlflow.parentRunId` gives
the tree). The MLflow page loses deep trees when it is sorted or filtered, so every run also carries the
same `unidetox.*` tags and the id of its parent run in `unidetox.submission`: one filter shows them flat.
"""

from __future__ import annotations

from pathlib import Path

from unidetox_ray.tracking.content import content_metrics
from unidetox_ray.tracking.journal import Journal
from unidetox_ray.tracking.null import NullRun, NullTracker
from unidetox_ray.tracking.page import read_runs, ui_command, ui_environment, ui_url
from unidetox_ray.tracking.results import leaderboard_table, log_results
from unidetox_ray.tracking.runs import ChildRun
from unidetox_ray.tracking.tracker import Tracker

__all__ = [
    "AnyTracker",
    "ChildRun",
    "Journal",
    "NullRun",
    "NullTracker",
    "Tracker",
    "content_metrics",
    "leaderboard_table",
    "log_results",
    "open_tracker",
    "read_runs",
    "ui_command",
    "ui_environment",
    "ui_url",
]

AnyTracker = Tracker | NullTracker


def open_tracker(
    uri: str,
    *,
    experiment: str,
    artifact_root: Path | None = None,
    system_metrics: float | None = None,
) -> AnyTracker:
    """A tracker for the MLflow experiment `experiment` of the store `uri`; both are created where missing.

    Args:
        uri: `sqlite:////absolute/mlflow.db` (a relative path is taken from the current folder), the address
            of an MLflow server (`http://…`), a `postgresql:`, `mysql:` or `mssql:` database; "" or "none"
            records nothing.
        artifact_root: folder for artifacts of a new experiment, made absolute, mode 0700. Default:
            `artifacts` beside a SQLite file, the server's own choice elsewhere.
        system_metrics: seconds between samples of CPU, memory and GPU load on the parent run; None is off.

    Raises:
        ConfigError: the address cannot be used (a `file:` store, an unwritable folder, a foreign database …).
    """
    from unidetox_ray.tracking.address import open_store

    store = open_store(uri, experiment, artifact_root)
    return NullTracker() if store is None else Tracker(store, system_metrics=system_metrics)
