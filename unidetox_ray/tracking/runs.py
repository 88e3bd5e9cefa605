"""One MLflow run: everything a submission or a part of it records. All writes are idempotent.

A resumed driver logs the same things again: a point already there with the same name and step is skipped
(the first value stays), a dataset input and an equal parameter are accepted once, tables and artifacts are
replaced.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from unidetox_ray.tracking.address import Store, store_errors
from unidetox_ray.tracking.names import (
    NOT_APPLICABLE,
    TAG_LENGTH,
    mlflow_name,
    parameter_values,
    plain_text,
    tag_values,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

Kind = Literal["cell", "toxic", "corpus", "search", "trial", "models", "evaluation"]
STATUSES = ("FINISHED", "FAILED", "KILLED")
#: MLflow's limits for one request.
POINTS_PER_BATCH = 1000
NAMES_PER_BATCH = 100
DIGEST_LENGTH = 36
NAMES_LENGTH = 120
#: The MLflow page shows tables to everyone who can open it: no column that can hold hateful text goes there.
TEXT_COLUMNS = frozenset({"text", "prompt", "continuation", "question", "choices", "token_ids"})
_NONFINITE = "nonfinite_count"


class ChildRun:
    """A run of the store; made by `Tracker`. Methods can be called from any thread.

    Attributes: `run_id`, and `resumed`, True when the run was in the store before.
    """

    def __init__(self, store: Store, lock: RLock, run: Run, *, resumed: bool) -> None:
        self._store = store
        self._client = store.client
        self._lock = lock
        self.run_id: str = run.info.run_id
        self.resumed = resumed
        self._status: str = run.info.status
        self._params: dict[str, str] = dict(run.data.params)
        self._stored_metrics = frozenset(run.data.metrics)
        self._tables: list[dict[str, str]] = json.loads(run.data.tags.get("mlflow.loggedArtifacts", "[]"))
        self._steps: dict[str, set[int]] = {}
        self._spelled: dict[str, str] = {}
        # Numbers that were none: the last step counted per name; their total is in `nonfinite_count`.
        self._nonfinite: dict[str, int] = json.loads(run.data.tags.get("unidetox.nonfinite", "{}"))
        self._nonfinite_total = int(run.data.metrics.get(_NONFINITE, 0))
        model_id = run.data.tags.get("unidetox.model_id", NOT_APPLICABLE)
        self._model_id: str | None = None if model_id == NOT_APPLICABLE else model_id
        self._judged_on: dict[str, str] = {}

    @property
    def is_open(self) -> bool:
        """Whether the run still has to be ended."""
        return self._status == "RUNNING"

    def metrics(self, values: Mapping[str, float | None], step: int = 0) -> None:
        """Record numbers at a step. None, NaN and infinities only count in `nonfinite_count`."""
        self._points([(name, step, value) for name, value in values.items()])

    def history(self, name: str, points: Iterable[tuple[int, float | None]]) -> None:
        """Record a curve, `(step, value)` pairs, in requests of up to 1000 points."""
        self._points([(name, step, value) for step, value in points])

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted names, values cut to 6000 characters.

        MLflow never changes a parameter: a value that differs from the recorded one goes to the tag
        `unidetox.changed.<name>` instead.
        """
        with self._lock, store_errors(self._store.shown, "record parameters"):
            from mlflow.entities import Param

            wanted = parameter_values(values)
            new = {k: v for k, v in wanted.items() if k not in self._params}
            changed = {k: v for k, v in wanted.items() if self._params.get(k, v) != v}
            if new:
                self._reopen()
            for part in _parts([Param(k, v) for k, v in new.items()], NAMES_PER_BATCH):
                self._client.log_batch(self.run_id, params=part, synchronous=True)
            self._params.update(new)
            if changed:
                self._set_tags({f"unidetox.changed.{k}"[:250]: v[:TAG_LENGTH] for k, v in changed.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags (bare names get the prefix `unidetox.`); a later value replaces an earlier one."""
        with self._lock, store_errors(self._store.shown, "set tags"):
            self._set_tags(tag_values(values))

    def dataset(self, name: str, path: Path, digest: str, context: str, rows: int) -> None:
        """Record a file that the run read as an MLflow dataset input: name, hash, columns, size, no content.

        Args:
            digest: SHA-256 of the file or table; MLflow keeps 36 characters, an input tag has the whole.
            context: what it was used for: "distil", "train", "eval" … Numbers recorded after an "eval" stand beside that data
                set on the model's page.
            rows: number of rows.
        """
        with self._lock, store_errors(self._store.shown, f"record the dataset {name!r}"):
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(
                name=name[:500],
                digest=digest[:DIGEST_LENGTH],
                source_type="local",
                source=json.dumps({"uri": path.absolute().as_uri()}),
                schema=_column_schema(path),
                profile=json.dumps({"num_rows": int(rows)}),
            )
            marks = [InputTag("mlflow.data.context", context), InputTag("digest", digest)]
            self._client.log_inputs(self.run_id, [DatasetInput(dataset, marks)])
            if context == "eval":
                self._judged_on = {"dataset_name": dataset.name, "dataset_digest": dataset.digest}

    def model(self, name: str, *, card: Path, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Give the run's model a page: its card and settings, no weights. Numbers recorded behind a data set "eval" stand there too.

        A run has one model; a second call does nothing. Servers without model pages (before MLflow 3) show the run alone.
        """
        if self._model_id is not None:
            return
        with self._lock, store_errors(self._store.shown, f"record the model {name!r}"):
            from mlflow.entities import LoggedModelOutput
            from mlflow.exceptions import MlflowException

            try:
                made = self._client.create_logged_model(
                    self._store.experiment_id,
                    name=re.sub(r"[/:.%\"'\s]", "_", name)[:NAMES_LENGTH],
                    source_run_id=self.run_id,
                    params=parameter_values(params),
                    tags=tag_values(tags),
                    model_type="causal language model",
                )
            except MlflowException as problem:
                if problem.error_code == "ENDPOINT_NOT_FOUND":
                    return
                raise
            if card.is_file():
                self._client.log_model_artifact(made.model_id, str(card))
            self._client.finalize_logged_model(made.model_id, "READY")
            self._client.log_outputs(self.run_id, [LoggedModelOutput(made.model_id, 0)])
            self._set_tags({"unidetox.model_id": made.model_id})
            self._model_id = made.model_id

    def note(self, markdown: str) -> None:
        """Set the run's description, which the page shows first."""
        with self._lock, store_errors(self._store.shown, "set the description"):
            self._set_tags({"mlflow.note.content": plain_text(markdown, TAG_LENGTH)})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts, replacing one of the same name."""
        with self._lock, store_errors(self._store.shown, f"store the artifact {path.name}"):
            self._client.log_artifact(self.run_id, str(path), folder)

    def table(self, df: pl.DataFrame, file: str) -> None:
        """Write a table that the MLflow page shows as one, replacing one of the same name (`….json`).

        Raises ValueError for a column that can hold raw text: the page is no place for it.
        """
        if not file.endswith(".json") or posixpath.normpath(file) != file or file.startswith(("/", "..")):
            raise ValueError(f"a table needs a relative name ending in .json, not {file!r}")
        if forbidden := sorted(TEXT_COLUMNS & set(df.columns)):
            raise ValueError(f"table {file}: column {forbidden[0]!r} can hold raw text, not for the page")
        rows = [[_cell(value) for value in row] for row in df.iter_rows()]
        content = json.dumps({"columns": df.columns, "data": rows}, allow_nan=False)
        with self._lock, store_errors(self._store.shown, f"store the table {file}"):
            self._client.log_text(self.run_id, content, file)
            entry = {"path": file, "type": "table"}
            if entry not in self._tables:
                self._tables.append(entry)
                self._set_tags({"mlflow.loggedArtifacts": json.dumps(self._tables)})

    def end(self, status: str = "FINISHED") -> None:
        """End the run FINISHED, FAILED or KILLED; a run that ended so before keeps its end time."""
        if status not in STATUSES:
            raise ValueError(f"a run ends {', '.join(STATUSES)}, not {status!r}")
        with self._lock, store_errors(self._store.shown, f"end run {self.run_id}"):
            if self._status != status:
                self._client.set_terminated(self.run_id, status)
                self._status = status

    # What follows is for this package only.

    def _reopen(self) -> None:
        """Mark the run as going on; a finished run is left alone until something new is recorded in it."""
        if not self.is_open:
            self._client.update_run(self.run_id, status="RUNNING")
            self._status = "RUNNING"

    def _set_tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for part in _parts([RunTag(k, v) for k, v in values.items()], NAMES_PER_BATCH):
            self._client.log_batch(self.run_id, tags=part, synchronous=True)

    def _spelling(self, name: str) -> str:
        """The MLflow name of a metric; a second name with the same spelling gets a number behind it."""
        if name not in self._spelled:
            spelled, taken = mlflow_name(name), set(self._spelled.values())
            alternatives = (f"{spelled[:240]}.{n}" for n in range(2, len(taken) + 3))
            self._spelled[name] = next(s for s in (spelled, *alternatives) if s not in taken)
        return self._spelled[name]

    def _known_steps(self, name: str) -> set[int]:
        """Steps at which a metric has a point; the store is asked once, if it had the metric before."""
        if name not in self._steps:
            before = name in self._stored_metrics
            stored = self._client.get_metric_history(self.run_id, name) if before else []
            self._steps[name] = {point.step for point in stored}
        return self._steps[name]

    def _points(self, points: list[tuple[str, int, float | None]]) -> None:
        with self._lock, store_errors(self._store.shown, "record metrics"):
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            new: list[Metric] = []
            counted = self._nonfinite_total
            for original, step, value in sorted(points, key=lambda point: point[1]):
                name = self._spelling(original)
                if value is None or not math.isfinite(value):
                    if step > self._nonfinite.get(name, -1):
                        self._nonfinite[name] = step
                        self._nonfinite_total += 1
                elif step not in self._known_steps(name):
                    self._known_steps(name).add(step)
                    # Not the training's curves: the model's page lists every point of a metric on a line of its own.
                    judged = self._model_id is not None and self._judged_on
                    about = {"model_id": self._model_id, **self._judged_on} if judged else {}
                    new.append(Metric(name, float(value), now, step, **about))
            if self._nonfinite_total > counted:
                total = self._nonfinite_total
                new.append(Metric(_NONFINITE, float(total), now, total))  # step = count: unique and rising
            if not new:
                return
            self._reopen()
            for part in _parts(new, POINTS_PER_BATCH):
                self._client.log_batch(self.run_id, metrics=part, synchronous=True)
            if self._nonfinite_total > counted:
                self._set_tags({"unidetox.nonfinite": json.dumps(self._nonfinite)})


def _parts(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _cell(value: Any) -> Any:
    """A table cell as JSON: numbers that are none become null, nested values and dates become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else plain_text(value, TAG_LENGTH)


def _column_schema(path: Path) -> str | None:
    """Column names and types of a parquet file in the form the MLflow page reads; None for other files."""
    if path.suffix != ".parquet":
        return None
    columns = [{"name": name, "type": str(kind)} for name, kind in pl.read_parquet_schema(path).items()]
    return json.dumps({"mlflow_colspec": columns})
