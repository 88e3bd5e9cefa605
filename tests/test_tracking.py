"""Tracking against real SQLite stores: the tree of runs, resumption, ends, names, tables, data, the page."""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidetox_ray.errors import ConfigError, StageError, TrackingError
from unidetox_ray.tracking import (
    ChildRun,
    NullRun,
    NullTracker,
    Tracker,
    log_results,
    open_tracker,
    read_runs,
    ui_command,
    ui_environment,
    ui_url,
)
from unidetox_ray.tracking.address import connect, resolve_uri
from unidetox_ray.tracking.names import COMMON_TAGS, mlflow_name
from unidetox_ray.tracking.tracker import status_for
from unidetox_ray.tracking.writer import is_alive, writer_id

STUDY = "tiny"
MARK = "zebrafish sentence that only the corpus holds"

#: A driver in its own process: store argv[1], key argv[2]; opens runs, says so, then does argv[3].
DRIVER = """
import signal, sys, time
from unidetox_ray.tracking import open_tracker
assert "mlflow" not in sys.modules, "importing the package must not import mlflow"
uri, key, action = sys.argv[1:]
def on_signal(number, frame):
    raise SystemExit(128 + number)
signal.signal(signal.SIGTERM, on_signal)
with open_tracker(uri, experiment="tiny") as tracker:
    tracker.begin(key=key, name=key, params={"seed": 1}, tags={})
    done = tracker.child("toxic", key="toxic", name="toxic", params={}, tags={})
    done.end("FINISHED")
    cell = tracker.child("cell", key="gpt2", name="gpt2", params={}, tags={"family": "gpt2"})
    search = tracker.child("search", key="search", name="search", params={}, tags={})
    tracker.child("trial", key="lr=1e-5", name="lr=1e-5", params={}, tags={}, parent=search)
    cell.history("loss", [(step, 1.0 / (step + 1)) for step in range(5)])
    print("ready", flush=True)
    if action == "wait":
        time.sleep(60)
    if action == "fail":
        raise ValueError("no such luck")
"""


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as the package creates it; tests copy it, creation takes a second or two."""
    file = tmp_path_factory.mktemp("blank") / "mlflow.db"
    open_tracker(f"sqlite:///{file}", experiment="nothing")
    return file


@pytest.fixture
def uri(blank: Path, tmp_path: Path) -> str:
    (tmp_path / "mlruns").mkdir()
    shutil.copy(blank, tmp_path / "mlruns" / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlruns/mlflow.db"


@pytest.fixture
def begin(uri: str) -> Iterator[Callable[..., Tracker]]:
    """Starts a submission as a new driver would; what a test leaves open is ended after it."""
    opened: list[Tracker] = []

    def start(key: str = "submission", **params: Any) -> Tracker:
        tracker = open_tracker(uri, experiment=STUDY)
        assert isinstance(tracker, Tracker)
        opened.append(tracker)
        tracker.begin(key=key, name="tiny", params={"seed": 7, **params}, tags={"fidelity": "paper"})
        return tracker

    yield start
    for tracker in opened:
        tracker.end()


def cell_of(tracker: Tracker, key: str = "gpt2-unidetox-s1", **tags: Any) -> ChildRun:
    return tracker.child("cell", key=key, name=key, params={"lr": 1e-5}, tags={"family": "gpt2", **tags})


def by_key(uri: str) -> dict[str, dict[str, Any]]:
    return {run["key"]: run for run in read_runs(uri, STUDY)}


def points_of(uri: str, run: ChildRun, name: str) -> list[tuple[int, float]]:
    return sorted((p.step, p.value) for p in connect(uri).get_metric_history(run.run_id, name))


def drive(uri: str, key: str, action: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, uri, key, action]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# The tree and its tags


def test_a_submission_is_a_tree_with_the_same_tags_everywhere(begin: Any, uri: str) -> None:
    tracker = begin(corpus={"alpha": 0.1, "nested": {"deep": [1, 2]}})
    toxic = tracker.child("toxic", key="t", name="toxic", params={}, tags={"stage": "toxic"})
    cell = cell_of(tracker, method="unidetox", seed=1, corpus_sha256="ab" * 32)
    search = tracker.child("search", key="s", name="search", params={}, tags={})
    trial = tracker.child("trial", key="lr=1e-05,steps=4", name="t0", params={}, tags={}, parent=search)
    tracker.end()

    runs = {run["run_id"]: run for run in read_runs(uri, STUDY)}
    assert len(runs) == 5
    assert runs[tracker.parent.run_id]["parent"] is None
    assert {runs[r.run_id]["parent"] for r in (toxic, cell, search)} == {tracker.parent.run_id}
    assert runs[trial.run_id]["parent"] == search.run_id
    names = {f"unidetox.{name}" for name in COMMON_TAGS}
    for run in runs.values():
        assert names <= set(run["tags"])
        assert run["tags"]["unidetox.study"] == STUDY
        assert run["tags"]["unidetox.fidelity"] == "paper"
        assert json.loads(run["tags"]["unidetox.versions"])["torch"][0].isdigit()
    flat = [run for run in runs.values() if run["tags"].get("unidetox.submission") == tracker.parent.run_id]
    assert len(flat) == 4
    assert runs[cell.run_id]["tags"]["unidetox.seed"] == "1"
    assert runs[cell.run_id]["tags"]["unidetox.scorer"] == "-"
    assert runs[cell.run_id]["params"] == {"lr": "1e-05"}
    parent = runs[tracker.parent.run_id]["params"]
    assert parent["corpus.alpha"] == "0.1"
    assert parent["corpus.nested.deep"] == "[1, 2]"
    assert {"version.torch", "version.ray", "version.mlflow", "version.python"} <= set(parent)


def test_children_need_a_submission_and_a_tracker_has_one_key(begin: Any, uri: str) -> None:
    tracker = open_tracker(uri, experiment=STUDY)
    with pytest.raises(RuntimeError, match="begin"):
        cell_of(tracker)
    tracker = begin("one")
    with pytest.raises(RuntimeError, match="'one'"):
        tracker.begin(key="two", name="two", params={}, tags={})


# Resumption


def test_the_same_submission_again_adds_nothing(begin: Any, uri: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.parquet"
    pl.DataFrame({"text_id": [0], "text": [MARK]}).write_parquet(corpus)

    def record() -> tuple[Tracker, ChildRun]:
        tracker = begin()
        cell = cell_of(tracker)
        cell.metrics({"tp_id": 0.25, "ppl": math.nan})
        cell.metrics({"clean_ppl": None})
        cell.history("loss", [(step, 2.0 - step / 1000) for step in range(1500)])
        cell.dataset("corpus", corpus, "cd" * 32, "train", 1)
        cell.table(pl.DataFrame({"domain": ["a"], "tp": [0.5]}), "domains.json")
        tracker.end()
        return tracker, cell

    first, first_cell = record()
    before = by_key(uri)
    second, second_cell = record()
    after = by_key(uri)
    assert (first.parent.run_id, first_cell.run_id) == (second.parent.run_id, second_cell.run_id)
    assert (first_cell.resumed, second_cell.resumed) == (False, True)
    assert len(after) == 2
    assert points_of(uri, second_cell, "tp_id") == [(0, 0.25)]
    assert points_of(uri, second_cell, "loss") == [(step, 2.0 - step / 1000) for step in range(1500)]
    assert points_of(uri, second_cell, "nonfinite_count") == [(1, 1.0), (2, 2.0)]
    key = "gpt2-unidetox-s1"
    assert after[key]["inputs"] == before[key]["inputs"]
    assert len(after[key]["inputs"]) == 1
    assert after[key]["end"] == before[key]["end"], "a finished cell is left alone when nothing is new"
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        doubled = "SELECT key, step FROM metrics GROUP BY run_uuid, key, step HAVING COUNT(*) > 1"
        assert database.execute(doubled).fetchall() == []
    table = json.loads(Path(connect(uri).download_artifacts(first_cell.run_id, "domains.json")).read_text())
    assert table == {"columns": ["domain", "tp"], "data": [["a", 0.5]]}


def test_a_resumed_run_takes_only_the_new_points_and_keeps_old_parameters(begin: Any, uri: str) -> None:
    cell = cell_of(begin())
    cell.history("loss", [(0, 3.0), (10, 2.0)])
    tracker = begin()
    cell = cell_of(tracker)
    cell.history("loss", [(0, 9.0), (10, 9.0), (20, 1.0)])
    cell.params({"lr": 2e-5, "steps": 20})
    tracker.end()
    assert points_of(uri, cell, "loss") == [(0, 3.0), (10, 2.0), (20, 1.0)]
    run = by_key(uri)["gpt2-unidetox-s1"]
    assert run["params"] == {"lr": "1e-05", "steps": "20"}
    assert run["tags"]["unidetox.changed.lr"] == "2e-05"


def test_something_new_reopens_a_finished_cell_which_is_then_ended(begin: Any, uri: str) -> None:
    tracker = begin()
    cell_of(tracker).end()
    tracker.end()
    tracker = begin()
    cell = cell_of(tracker)
    assert by_key(uri)["gpt2-unidetox-s1"]["status"] == "FINISHED"
    cell.metrics({"tp_ood": 0.5})
    assert by_key(uri)["gpt2-unidetox-s1"]["status"] == "RUNNING"
    assert by_key(uri)["submission"]["status"] == "RUNNING"
    tracker.end()
    assert {run["status"] for run in read_runs(uri, STUDY)} == {"FINISHED"}


def test_another_key_is_another_submission(begin: Any, uri: str) -> None:
    first, second = begin("one"), begin("two")
    assert first.parent.run_id != second.parent.run_id
    assert cell_of(first).run_id != cell_of(second).run_id
    assert len(read_runs(uri, STUDY)) == 4


# Ends


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("bad"), "FAILED"),
        (StageError("bad"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (SystemExit("terminated"), "KILLED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(1), "FAILED"),
    ],
)
def test_how_a_submission_ended_is_its_status(error: BaseException | None, status: str) -> None:
    assert status_for(error) == status


@pytest.mark.parametrize("error", [None, ValueError("bad"), KeyboardInterrupt()])
def test_leaving_the_tracker_ends_every_open_run(begin: Any, uri: str, error: BaseException | None) -> None:
    def work() -> None:
        with begin() as tracker:
            cell_of(tracker, "done").end("FINISHED")
            cell_of(tracker, "broken").end("FAILED")
            search = tracker.child("search", key="search", name="search", params={}, tags={})
            tracker.child("trial", key="trial", name="trial", params={}, tags={}, parent=search)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    statuses = {key: run["status"] for key, run in by_key(uri).items()}
    left = status_for(error)
    expected = dict.fromkeys(("submission", "search", "trial"), left)
    assert statuses == {**expected, "done": "FINISHED", "broken": "FAILED"}
    assert all(run["end"] for run in read_runs(uri, STUDY))


def test_sigterm_kills_sigkill_is_cleaned_up_and_resumed(begin: Any, uri: str) -> None:
    """Two drivers in one store at once: one gets SIGTERM, one SIGKILL; a third takes the second up."""
    terminated, killed = drive(uri, "terminated", "wait"), drive(uri, "killed", "wait")
    for process in (terminated, killed):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    begin("meanwhile").end()
    alive = [run["status"] for run in read_runs(uri, STUDY) if run["status"] == "RUNNING"]
    assert len(alive) == 8, "a live driver's runs are not touched"

    terminated.send_signal(signal.SIGTERM)
    killed.send_signal(signal.SIGKILL)
    output = terminated.communicate(timeout=30)
    assert (terminated.returncode, output) == (143, ("", "")), "and MLflow prints nothing"
    killed.communicate(timeout=30)
    before = {run["run_id"]: run for run in read_runs(uri, STUDY)}

    def statuses(parent_key: str) -> list[str]:
        runs = read_runs(uri, STUDY)
        parent = next(run["run_id"] for run in runs if run["key"] == parent_key)
        family = [run for run in runs if parent in (run["run_id"], run["tags"].get("unidetox.submission"))]
        return sorted(run["status"] for run in family)

    assert statuses("terminated") == ["FINISHED", "KILLED", "KILLED", "KILLED", "KILLED"]
    assert statuses("killed") == ["FINISHED", "RUNNING", "RUNNING", "RUNNING", "RUNNING"]
    tracker = begin("killed")
    assert statuses("killed") == ["FINISHED", "KILLED", "KILLED", "KILLED", "RUNNING"]
    cell = tracker.child("cell", key="gpt2", name="gpt2", params={}, tags={})
    assert cell.run_id in before, "the same run goes on"
    assert before[cell.run_id]["tags"]["unidetox.family"] == "gpt2"
    cell.history("loss", [(step, 0.0) for step in range(6)])
    assert len(points_of(uri, cell, "loss")) == 6
    assert points_of(uri, cell, "loss")[4] == (4, 0.2)
    tracker.end()
    assert statuses("killed") == ["FINISHED", "FINISHED", "FINISHED", "KILLED", "KILLED"]
    assert not [run for run in read_runs(uri, STUDY) if run["status"] == "RUNNING"]


def test_the_next_submission_cleans_up_after_a_driver_that_is_gone(begin: Any, uri: str) -> None:
    process = drive(uri, "gone", "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=30)
    begin("other").end()
    statuses = sorted(run["status"] for run in read_runs(uri, STUDY))
    assert statuses == ["FINISHED", "FINISHED", "KILLED", "KILLED", "KILLED", "KILLED"]


def test_a_writer_is_told_from_a_later_process_with_its_number() -> None:
    mine = writer_id(os.getpid())
    machine, process, start = mine.split(":")
    assert is_alive(mine) is True
    assert is_alive(f"{machine}:{process}:{int(start) - 1}") is False
    assert is_alive(f"{machine}:{2**22 + 1}:0") is False
    assert is_alive(f"elsewhere:{process}:{start}") is None


# The store


def test_four_drivers_may_be_the_first_to_touch_a_store(tmp_path: Path) -> None:
    fresh = f"sqlite:///{tmp_path}/new/mlflow.db"
    drivers = [drive(fresh, f"driver{n}", "end" if n else "fail") for n in range(4)]
    outputs = [driver.communicate(timeout=60) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [1, 0, 0, 0], outputs
    assert [out for out, _ in outputs] == ["ready\n"] * 4
    assert [err for _, err in outputs[1:]] == [""] * 3, "no chatter of MLflow or alembic"
    runs = read_runs(fresh, STUDY)
    assert len(runs) == 4 * 5
    assert {run["status"] for run in runs if run["kind"] == "parent" and run["key"] != "driver0"} == {
        "FINISHED"
    }
    assert next(run["status"] for run in runs if run["key"] == "driver0") == "FAILED"
    left = {path.name for path in (tmp_path / "new").iterdir()}
    assert left - {"mlflow.db.lock"} == {"mlflow.db", "artifacts"}
    assert stat.S_IMODE((tmp_path / "new" / "artifacts").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "mlflow.db").stat().st_mode) == 0o600


def test_a_creation_that_was_cut_short_does_no_harm(tmp_path: Path, blank: Path) -> None:
    """What a killed creator leaves is a temporary file; an empty file in the database's place is filled."""
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "mlflow.db.new-1").write_bytes(blank.read_bytes()[:5000])
    tracker = open_tracker(f"sqlite:///{tmp_path}/mlflow.db", experiment=STUDY)
    tracker.begin(key="k", name="n", params={}, tags={})
    tracker.end()
    assert not (tmp_path / "mlflow.db.new-1").exists()
    assert len(read_runs(f"sqlite:///{tmp_path}/mlflow.db", STUDY)) == 1


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///tmp/mlruns", "plain folders"),
        ("mlruns", "plain folders"),
        ("./some/mlruns", "plain folders"),
        ("sqlite:///:memory:", "one database file"),
        ("sqlite://", "one database file"),
        ("sqlite:///folder/", "one database file"),
        ("ftp://host/x", "unknown kind of store"),
    ],
)
def test_addresses_that_cannot_work_are_refused_in_one_line(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as problem:
        open_tracker(address, experiment=STUDY)
    assert "accepted:" in str(problem.value)
    assert "\n" not in str(problem.value)


def test_addresses_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///mlruns/mlflow.db") == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert resolve_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert resolve_uri("http://host:5000") == "http://host:5000"
    assert resolve_uri("postgresql+psycopg://u:p@h/d") == "postgresql+psycopg://u:p@h/d"
    assert resolve_uri(" None ") is None


def test_a_password_in_an_address_is_never_shown() -> None:
    with pytest.raises(ConfigError) as problem:
        ui_command("postgresql://user:hunter22@host/db")
    assert "hunter22" not in str(problem.value)


def test_a_file_of_another_program_is_refused_and_not_changed(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    text = tmp_path / "text.db"
    text.write_text("not a database at all " * 100)
    for file in (foreign, text):
        before = file.read_bytes()
        with pytest.raises(ConfigError, match=file.name):
            open_tracker(f"sqlite:///{file}", experiment=STUDY)
        assert file.read_bytes() == before


def test_a_moved_store_says_so_before_the_work(uri: str, tmp_path: Path) -> None:
    open_tracker(uri, experiment=STUDY, artifact_root=tmp_path / "old" / "artifacts")
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "old").write_text("a file is here now")
    with pytest.raises(ConfigError, match="was the store moved"):
        open_tracker(uri, experiment=STUDY)


def test_a_deleted_experiment_comes_back(begin: Any, uri: str) -> None:
    begin().end()
    client = connect(uri)
    client.delete_experiment(client.get_experiment_by_name(STUDY).experiment_id)
    begin().end()
    assert len(read_runs(uri, STUDY)) == 1


def test_a_store_that_breaks_later_is_a_one_line_error(begin: Any, uri: str) -> None:
    tracker = begin()
    cell = cell_of(tracker)
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        database.execute("ALTER TABLE metrics RENAME TO gone")
    with pytest.raises(TrackingError, match="cannot record metrics") as problem:
        cell.metrics({"tp_id": 0.5})
    assert "\n" not in str(problem.value)
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        database.execute("ALTER TABLE gone RENAME TO metrics")


# What a run records


def test_odd_names_and_numbers_that_are_none(begin: Any, uri: str) -> None:
    cell = cell_of(begin())
    cell.metrics(
        {"tp_id@lexicon": 0.5, "ppl (test)": 12.0, "ppl [test]": 13.0, "a//b/../c": 1.0, "é" * 400: 2.0}
    )
    cell.metrics({"nan": math.nan, "inf": math.inf, "absent": None, "whole": 3}, step=4)
    cell.history("loss", [(1, 1.0), (2, math.nan), (3, -math.inf), (4, 0.5)])
    run = by_key(uri)["gpt2-unidetox-s1"]["metrics"]
    assert run["tp_id.at.lexicon"] == 0.5
    assert {run["ppl _test_"], run["ppl _test_.2"]} == {12.0, 13.0}
    assert run["a/b/c"] == 1.0
    assert run["whole"] == 3.0
    assert run["nonfinite_count"] == 5.0
    assert not {"nan", "inf", "absent"} & set(run)
    assert points_of(uri, cell, "loss") == [(1, 1.0), (4, 0.5)]
    assert all(math.isfinite(value) for value in run.values())


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=300))
def test_every_name_that_is_made_is_one_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

    try:
        spelled = mlflow_name(name)
    except ValueError:
        assert not name.replace("/", "").replace(".", "").strip()
        return
    _validate_metric_name(spelled)
    assert 0 < len(spelled) <= MAX_ENTITY_KEY_LENGTH
    assert mlflow_name(spelled) == spelled


def test_long_parameters_many_parameters_and_secrets(
    begin: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_CANARY12345")
    cell = cell_of(begin())
    cell.params({"long": "x" * 9000, "who": "user hf_CANARY12345 said", "odd@name": True, "none": None})
    cell.params({f"p{n}": n for n in range(250)})
    cell.tags({"note": "hf_CANARY12345", "long": "y" * 9000})
    run = by_key(uri)["gpt2-unidetox-s1"]
    assert len(run["params"]["long"]) == 6000
    assert run["params"]["long"].endswith("[cut: 9000 characters]")
    assert run["params"]["who"] == "user *** said"
    assert (run["params"]["odd.at.name"], run["params"]["none"]) == ("true", "null")
    assert run["params"]["p249"] == "249"
    assert b"CANARY" not in Path(uri.removeprefix("sqlite:///")).read_bytes()


def test_a_corpus_is_an_input_of_every_cell_and_its_text_is_not_in_the_store(
    begin: Any, uri: str, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.parquet"
    pl.DataFrame({"text_id": [0, 1], "text": [MARK, MARK.upper()], "n_tokens": [7, 7]}).write_parquet(corpus)
    tracker = begin()
    distilled = tracker.child("corpus", key="c", name="corpus", params={}, tags={})
    distilled.artifact(corpus)
    cells = [cell_of(tracker, key, corpus_sha256="ab" * 32) for key in ("gpt2", "opt")]
    for cell in cells:
        cell.dataset("unidetox-corpus", corpus, "ab" * 32, "train", 2)
    with pytest.raises(ValueError, match="'text' can hold raw text"):
        distilled.table(pl.read_parquet(corpus), "sample.json")
    tracker.end()

    client = connect(uri)
    for cell in cells:
        (entry,) = client.get_run(cell.run_id).inputs.dataset_inputs
        assert (entry.dataset.name, entry.dataset.digest) == ("unidetox-corpus", ("ab" * 32)[:36])
        tags = {tag.key: tag.value for tag in entry.tags}
        assert tags == {"mlflow.data.context": "train", "digest": "ab" * 32}
        columns = json.loads(entry.dataset.schema)["mlflow_colspec"]
        assert [column["name"] for column in columns] == ["text_id", "text", "n_tokens"]
        assert json.loads(entry.dataset.profile) == {"num_rows": 2}
        assert json.loads(entry.dataset.source) == {"uri": corpus.as_uri()}
    stored = Path(client.download_artifacts(distilled.run_id, "corpus.parquet"))
    assert stored.read_bytes() == corpus.read_bytes()
    database = Path(uri.removeprefix("sqlite:///")).read_bytes()
    assert MARK.encode() not in database
    assert MARK.upper().encode() not in database


def test_tables_hold_plain_json(begin: Any, uri: str) -> None:
    tracker = begin()
    tracker.leaderboard(
        pl.DataFrame({"cell": ["a", "b"], "tp": [0.5, math.nan], "n": [1, None], "ok": [True, False]})
    )
    for name in ("x.csv", "/x.json", "../x.json", "a//x.json"):
        with pytest.raises(ValueError, match=r"relative name ending in \.json"):
            tracker.parent.table(pl.DataFrame({"a": [1]}), name)
    client = connect(uri)
    table = json.loads(Path(client.download_artifacts(tracker.parent.run_id, "leaderboard.json")).read_text())
    assert table == {
        "columns": ["cell", "tp", "n", "ok"],
        "data": [["a", 0.5, 1, True], ["b", None, None, False]],
    }
    shown = json.loads(client.get_run(tracker.parent.run_id).data.tags["mlflow.loggedArtifacts"])
    assert shown == [{"path": "leaderboard.json", "type": "table"}]


def test_threads_share_one_writer(begin: Any, uri: str) -> None:
    tracker = begin()
    problems: list[BaseException] = []

    def record(index: int) -> None:
        try:
            cell = cell_of(tracker, f"cell{index % 4}")
            for step in range(10):
                cell.metrics({f"m{index}": float(step)}, step=step)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=record, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(read_runs(uri, STUDY)) == 5
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        assert database.execute("SELECT COUNT(*) FROM metrics").fetchone() == (80,)


def test_system_metrics_are_taken_when_asked_for(uri: str) -> None:
    tracker = open_tracker(uri, experiment=STUDY, system_metrics=0.05)
    tracker.begin(key="k", name="n", params={}, tags={})
    deadline = time.monotonic() + 20
    while not any(name.startswith("system/") for name in by_key(uri)["k"]["metrics"]):
        assert time.monotonic() < deadline, "no system metric came"
        time.sleep(0.1)
    tracker.end()
    assert by_key(uri)["k"]["status"] == "FINISHED"


# Results


def result(family: str, method: str, **change: Any) -> dict[str, Any]:
    paired = {} if method == "base" else {"diff": -0.3, "diff_low": -0.4, "diff_high": -0.2}
    number = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 727, "diff": None, "failed": 1, **paired}
    tp = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 100}
    trained = {} if method == "base" else {"corpus_sha256": "ab" * 32}
    return {
        "family": family,
        "model": f"{family}-tiny",
        "method": method,
        "seed": 1,
        "settings": {"lr": 5e-05, "steps": 200, **trained},
        "status": "ok",
        "error": None,
        "cell": f"{family}-{method}-s1",
        "metrics": {"ppl": number, "tp_id": number, "tp_id@lexicon": number, "mmlu": {"value": None, "n": 0}},
        "domains": {"religion": {"distribution": "id", "tp": tp, "emt": {**tp, "value": 0.25}}},
        "scorer": "world-bert",
        # decode_seconds are part of generate_seconds, which are left out here: they do not count twice.
        "costs": {
            "train_seconds": 2.0,
            "score_seconds": 1.5,
            "decode_seconds": 8.0,
            "train_tokens": 640,
            "device": "cpu",
        },
        **change,
    }


def test_results_become_metrics_tables_and_a_leaderboard(begin: Any, uri: str) -> None:
    broken = result("falcon", "unidetox", status="failed", error="out of memory", metrics={}, domains={})
    rows = [result("gpt2", "base"), result("gpt2", "unidetox"), broken]
    tracker = begin()
    early = cell_of(tracker, precision="fp32")
    log_results(tracker, rows)
    log_results(tracker, rows)
    tracker.end()

    runs = by_key(uri)
    assert len(runs) == 4
    cell = runs["gpt2-unidetox-s1"]
    assert cell["run_id"] == early.run_id
    interval = {"tp_id": 0.5, "ci_low/tp_id": 0.4, "ci_high/tp_id": 0.6, "n/tp_id": 727.0}
    assert interval.items() <= cell["metrics"].items()
    assert cell["metrics"]["diff/tp_id"] == -0.3
    assert cell["metrics"]["tp_id.at.lexicon"] == 0.5
    assert cell["metrics"]["domain/religion/emt"] == 0.25
    assert cell["metrics"]["cost/cpu_seconds"] == 3.5
    assert "mmlu" not in cell["metrics"]
    assert cell["tags"]["unidetox.withheld"] == "mmlu"
    assert (cell["tags"]["unidetox.scorer"], cell["tags"]["unidetox.precision"]) == ("world-bert", "fp32")
    assert cell["params"]["steps"] == "200"
    assert cell["tags"]["unidetox.changed.lr"] == "5e-05"
    assert "diff/tp_id" not in runs["gpt2-base-s1"]["metrics"]
    assert set(cell["metrics"]) - {"diff/tp_id"} >= set(runs["gpt2-base-s1"]["metrics"])
    statuses = [runs[key]["status"] for key in ("gpt2-base-s1", "gpt2-unidetox-s1", "falcon-unidetox-s1")]
    assert statuses == ["FINISHED", "FINISHED", "FAILED"]
    assert runs["falcon-unidetox-s1"]["tags"]["unidetox.error"] == "out of memory"
    # Cells stand side by side on the page: one stage, the same tag names; a failed one's corpus is known as well.
    cells = [runs[row["cell"]]["tags"] for row in rows]
    assert {tags["unidetox.stage"] for tags in cells} == {"cell"}
    assert [tags["unidetox.corpus_sha256"] for tags in cells] == ["-", "ab" * 32, "ab" * 32]
    names = [
        {name for name in tags if not name.startswith(("unidetox.changed.", "mlflow."))} for tags in cells
    ]
    assert names[0] == names[1] == names[2]
    assert sorted(runs["submission"]["artifacts"]) == ["domains.json", "leaderboard.json", "ranking.json"]
    assert cell["artifacts"] == ["domains.json"]

    path = connect(uri).download_artifacts(tracker.parent.run_id, "leaderboard.json")
    board = json.loads(Path(path).read_text())
    assert [line[0] for line in board["data"]] == [row["cell"] for row in rows]
    line = dict(zip(board["columns"], board["data"][1], strict=True))
    assert (line["tp_id"], line["tp_id_low"], line["tp_id_diff"], line["mmlu"]) == (0.5, 0.4, -0.3, None)
    assert dict(zip(board["columns"], board["data"][2], strict=True))["tp_id"] is None
    assert (line["clean_ratio"], line["front_ppl"], line["train_seconds"]) == (None, None, 2.0)
    path = connect(uri).download_artifacts(tracker.parent.run_id, "ranking.json")
    ranking = json.loads(Path(path).read_text())
    methods = [dict(zip(ranking["columns"], values, strict=True)) for values in ranking["data"]]
    assert [(each["method"], each["families"], each["ppl"]) for each in methods] == [
        ("base", 2, 0.5), ("unidetox", 2, 0.5)
    ]  # fmt: skip
    assert methods[0]["incomplete"].startswith("ppl: 1 of 2")


def test_without_tracking_the_same_calls_do_nothing(tmp_path: Path) -> None:
    for address in ("", "none"):
        with open_tracker(address, experiment=STUDY) as tracker:
            assert isinstance(tracker, NullTracker)
            tracker.begin(key="k", name="n", params={}, tags={})
            run = tracker.child("cell", key="c", name="c", params={}, tags={})
            run.artifact(tmp_path / "absent")
            log_results(tracker, [result("gpt2", "base")])
    assert read_runs("none", STUDY) == []
    for real, null in ((Tracker, NullTracker), (ChildRun, NullRun)):
        public = [name for name, _ in inspect.getmembers(real, inspect.isfunction) if name[0] != "_"]
        assert public
        for name in public:
            wanted, offered = (inspect.signature(getattr(kind, name)).parameters for kind in (real, null))
            assert list(wanted) == list(offered), name
            assert [p.default for p in wanted.values()] == [p.default for p in offered.values()], name


# The page


def test_the_page_is_served_on_loopback_only(begin: Any, uri: str) -> None:
    with begin() as tracker:
        cell_of(tracker)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ui_command(uri, port)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--workers") + 1] == "1"
    address = ui_url(uri, STUDY, port)
    experiment = connect(uri).get_experiment_by_name(STUDY).experiment_id
    view = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?viewStateShareKey=unidetox-cells"
    assert address.startswith(view) and ui_url(uri, None, port) == address
    assert ui_url(uri, "no such study", port) == f"http://127.0.0.1:{port}/"
    server = subprocess.Popen(
        command,
        env={**os.environ, **ui_environment()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not answer"
                time.sleep(0.2)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
            data=json.dumps({"experiment_ids": [experiment]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert len(json.load(answer)["runs"]) == 2
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


@pytest.mark.parametrize(
    ("address", "port", "words"),
    [
        ("none", 5000, "nothing is recorded"),
        ("http://host:5000", 5000, "open its own page"),
        ("sqlite:////nowhere/mlflow.db", 5000, "does not exist"),
    ],
)
def test_a_page_needs_a_store(address: str, port: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ui_command(address, port)


def test_a_page_needs_a_port(uri: str) -> None:
    with pytest.raises(ConfigError, match="port 70000"):
        ui_command(uri, 70000)
