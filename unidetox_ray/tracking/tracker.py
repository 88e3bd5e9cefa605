"""The runs of one submission: the parent, its children, resumption, and that every run is ended.

Which runs are whose: `unidetox.submission` holds the parent's run id on every child, `unidetox.writer` the
process that records it. A driver that died without a word (SIGKILL, power) leaves runs RUNNING; the next
`begin` in the same experiment ends them KILLED when their process is gone.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Iterator, Mapping
from threading import RLock
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from unidetox_ray.artifacts import code_version, versions
from unidetox_ray.errors import (
    EXIT_OK,
    EXIT_SOME_CELLS_FAILED,
    EXIT_STAGE_FAILED,
    EXIT_USER_ERROR,
    UnidetoxError,
)
from unidetox_ray.tracking.address import Store, store_errors
from unidetox_ray.tracking.names import common_tags, tag_values
from unidetox_ray.tracking.runs import ChildRun, Kind
from unidetox_ray.tracking.views import NOTE_TAG, experiment_tags
from unidetox_ray.tracking.writer import is_alive, writer_id

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)
LEADERBOARD = "leaderboard.json"
RUNS_PER_PAGE = 1000


class Tracker:
    """The one writer of a submission; `open_tracker` makes it. A context manager: leaving it ends every run.

    Leaving normally ends the runs FINISHED, by an error FAILED, by Ctrl-C or a signal's SystemExit KILLED.
    A plain SIGTERM ends Python without any of this: the caller must turn it into SystemExit.
    """

    def __init__(self, store: Store, *, system_metrics: float | None = None) -> None:
        self._store = store
        self._client = store.client
        self._lock = RLock()
        self._writer = writer_id(os.getpid())
        self._process = os.getpid()
        self._key: str | None = None
        self._parent: ChildRun | None = None
        self._children: dict[tuple[str, str], ChildRun] = {}
        self._found: dict[tuple[str, str], Run] = {}
        self._inherited: dict[str, str] = {}
        self._seconds_between_samples = system_metrics
        self._monitor: Any = None

    @property
    def parent(self) -> ChildRun:
        """The submission's own run; RuntimeError before `begin`."""
        if self._parent is None:
            raise RuntimeError("Tracker.begin() has not been called")
        return self._parent

    def begin(self, *, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Start the submission `key`, or go on with the run that has this key in the experiment.

        Versions of the packages and the commit of the code are recorded beside `params` and `tags`.
        """
        with self._lock, store_errors(self._store.shown, "begin a submission"):
            if self._parent is not None:
                if key != self._key:
                    raise RuntimeError(f"this tracker records {self._key!r}; end it before {key!r} begins")
                return
            self._key = key
            given = tag_values({"study": self._store.experiment, **tags, "key": key, "kind": "parent"})
            parents = self._search("tags.`unidetox.role` = 'parent'")
            found = next((run for run in parents if run.data.tags.get("unidetox.key") == key), None)
            self._end_stale(found.info.run_id if found else None)
            self._inherited = common_tags(given, {})
            self._parent = self._open_run(found, name, {**self._inherited, "unidetox.role": "parent"})
            self._parent._reopen()
            parent_id = self._parent.run_id
            self._parent._set_tags({"mlflow.note.content": _note(parent_id)})
            self._describe_experiment()
            mine = self._search(f"tags.`unidetox.submission` = '{parent_id}'") if found else iter(())
            self._found = {(r.data.tags["unidetox.kind"], r.data.tags["unidetox.key"]): r for r in mine}
            atexit.register(self._at_exit)
            self._parent.params({**params, "version": versions()})
            self._start_monitor()

    def child(
        self,
        kind: Kind,
        *,
        key: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        parent: ChildRun | None = None,
    ) -> ChildRun:
        """The run of one part, found again by `kind` and `key` within the submission, else created.

        Args:
            tags: any of family, method, seed, stage, fidelity, precision, scorer, corpus_sha256 …; what is
                not given is "-" on a new run and stays as it was on an old one.
            parent: the search run for a trial; default the submission's run.

        A run found FINISHED stays so until something new is recorded in it; any other goes back to RUNNING.
        """
        with self._lock, store_errors(self._store.shown, f"open the run {name!r}"):
            above = (parent or self.parent).run_id
            given = tag_values({**tags, "kind": kind, "key": key})
            run = self._children.get((kind, key))
            if run is not None:
                run._set_tags(given)
            else:
                found = self._found.get((kind, key))
                if found is None:
                    given = common_tags({"unidetox.stage": kind, **given}, self._inherited)
                tree = {
                    "unidetox.role": "child",
                    "unidetox.submission": self.parent.run_id,
                    "mlflow.parentRunId": above,
                }
                run = self._open_run(found, name, {**given, **tree})
                if found is not None and found.info.status != "FINISHED":
                    run._reopen()
                self._children[(kind, key)] = run
            run.params(params)
            return run

    def describe(self, markdown: str) -> None:
        """Put `markdown` above what the description of the submission's run says of itself."""
        self.parent.note(f"{markdown}\n\n{_note(self.parent.run_id)}")

    def leaderboard(self, df: pl.DataFrame) -> None:
        """Show `df` as the table `leaderboard.json` of the parent run."""
        self.parent.table(df, LEADERBOARD)

    def end(self, status: str = "FINISHED") -> None:
        """End the parent and every child still open with one status. A second call does nothing.

        Every run is tried; the first failure is raised at the end.
        """
        with self._lock:
            if self._parent is None:
                return
            if self._monitor is not None:
                self._monitor.finish()
                self._monitor = None
            problems: list[UnidetoxError] = []
            for run in [*reversed(self._children.values()), self._parent]:
                try:
                    if run.is_open:
                        run.end(status)
                except UnidetoxError as problem:
                    problems.append(problem)
            atexit.unregister(self._at_exit)
            if problems:
                raise problems[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self.end(status_for(error))
        except UnidetoxError as problem:
            if error is None:
                raise
            log.warning("%s", problem)  # the error that ended the run is the one to see

    def _at_exit(self) -> None:
        """The interpreter ends and nobody has ended the runs; a forked copy of the driver must not do it."""
        if os.getpid() == self._process:
            try:
                self.end("KILLED")
            except UnidetoxError as problem:
                log.warning("%s", problem)

    def _open_run(self, found: Run | None, name: str, values: Mapping[str, str]) -> ChildRun:
        """The run as an object, created with all its tags at once or brought up to date."""
        commit = code_version()["git"]
        values = {
            **values,
            **tag_values({"git": commit, "versions": json.dumps(versions()), "writer": self._writer}),
            "mlflow.source.name": "unidetox_ray",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": commit,
        }
        if found is None:
            created = self._client.create_run(self._store.experiment_id, tags=values, run_name=name)
            return ChildRun(self._store, self._lock, created, resumed=False)
        run = ChildRun(self._store, self._lock, found, resumed=True)
        run._set_tags(values)
        return run

    def _describe_experiment(self) -> None:
        """Kind, description and views of the experiment; what a user wrote over the description stays."""
        stored = self._client.get_experiment(self._store.experiment_id).tags
        for name, value in experiment_tags(self._store.experiment).items():
            if stored.get(name) != value and not (name == NOTE_TAG and stored.get(name)):
                self._client.set_experiment_tag(self._store.experiment_id, name, value)

    def _search(self, condition: str) -> Iterator[Run]:
        """Runs of the experiment that meet an MLflow filter, oldest first."""
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._store.experiment_id],
                filter_string=condition,
                max_results=RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _end_stale(self, resumed_parent: str | None) -> None:
        """End RUNNING runs whose driver is gone.

        In the submission that is taken up again: all that are not of another live process of this machine.
        In other submissions: only those of a process of this machine that is gone for certain.
        """
        for run in list(self._search("attributes.status = 'RUNNING'")):
            writer = run.data.tags.get("unidetox.writer")
            if writer is None or run.info.run_id == resumed_parent:  # foreign, or about to go on
                continue
            own = resumed_parent is not None and run.data.tags.get("unidetox.submission") == resumed_parent
            alive = is_alive(writer)
            if (own and (writer == self._writer or alive is not True)) or (not own and alive is False):
                self._client.set_tag(run.info.run_id, "unidetox.ended", "later: its driver was gone")
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _start_monitor(self) -> None:
        if self._seconds_between_samples:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
                self.parent.run_id,
                sampling_interval=self._seconds_between_samples,
                resume_logging=self.parent.resumed,
                tracking_uri=self._store.uri,
            )
            self._monitor.start()


def status_for(error: BaseException | None) -> str:
    """How a submission ended that `error` left: our own exit codes are failures, others come from signals."""
    if error is None:
        return "FINISHED"
    if isinstance(error, SystemExit):
        if error.code in (None, EXIT_OK):
            return "FINISHED"
        ours = (EXIT_STAGE_FAILED, EXIT_USER_ERROR, EXIT_SOME_CELLS_FAILED)
        return "FAILED" if error.code in ours else "KILLED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _note(parent_id: str) -> str:
    return (
        "Artifacts: `ranking.json` (methods over all families), `leaderboard.json` (cells), `domains.json`, "
        "`report/report.html`.\n\n"
        f"All runs of this submission, flat: filter `tags.\"unidetox.submission\" = '{parent_id}'`. "
        "As a tree: sort by Created."
    )
