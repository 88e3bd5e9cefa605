"""One small run from pre-training to its report, watched from outside: no secret in anything it leaves, nothing of it listens
beyond loopback, nothing of it can be read by other users, and no text of its corpora stands in what people look at.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from small_experiment import SCRATCH, WORDS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults, pytest.mark.xdist_group("watched")]

#: One for each place, so that a find says which leaked; none has a form that a pattern knows.
CANARIES = {name: f"canary-{index}-b81f0c4e7a-{name.lower()}" for index, name in enumerate((
    "HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "WANDB_API_KEY", "RAY_AUTH_TOKEN",
))}  # fmt: skip
IN_A_FILE = "canary-9-b81f0c4e7a-of-the-file"
MARK = "b81f0c4e7a"
EXPERIMENT = {
    "name": "watched", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base", "unidetox"], "storage": "runs",
    "models": {"gpt2": {"source": "scratch:", "scratch": {**SCRATCH, "max_positions": 128}}},
    "data": {**dict.fromkeys(("toxic", "prompts", "clean"), "world"), "mmlu": None, "pretrain": ["world"]},
    "toxic": {"steps": 3, "max_length": 32}, "corpus": {"num_texts": 16, "max_length": 16, "shard_size": 8},
    "finetune": {"steps": 3, "batch_size": 4, "max_length": 32},
    "evaluate": {"continuations": 2, "max_new_tokens": 8, "runs": 1, "ppl_model": None, "clean_max_length": 32,
                 "scorers": [WORDS]},
    "cluster": {"num_cpus": 2}, "limit": 8,
}  # fmt: skip
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def below(pid: int) -> list[int]:
    """The processes that a process started, theirs too."""
    found = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                found += [int(child), *below(int(child))]
    except OSError:  # it has just ended
        pass
    return found


def listening(pids: list[int]) -> dict[tuple[str, str], str]:
    """(command, kind) -> address in hexadecimal, of every TCP and UDP-less socket on which one of the processes listens."""
    sockets = {}
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A":
                sockets[columns[9]] = (kind, columns[1].partition(":")[0])
    found = {}
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:120]
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                link = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                if link.startswith("socket:[") and link[8:-1] in sockets:
                    kind, address = sockets[link[8:-1]]
                    found[f"{command} {address}", kind] = address
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory, root_of_checkout):
    """(folder, output, addresses listened on, Ray's session folder) of one run of the command with canaries everywhere."""
    folder = tmp_path_factory.mktemp("watched")
    token = folder.parent / "hub-token"
    token.write_text(IN_A_FILE + "\n")
    (folder / "e.yaml").write_text(json.dumps(EXPERIMENT))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        **CANARIES,
        "HF_TOKEN_PATH": str(token),
        "PYTHONPATH": str(root_of_checkout),
        "UNIDETOX_DEBUG": "1",
    }
    with (folder.parent / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "unidetox_ray", "run", "e.yaml"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        found: dict[tuple[str, str], str] = {}
        sessions: set[str] = set()
        try:
            while process.poll() is None:
                pids = [process.pid, *below(process.pid)]
                found |= listening(pids)
                for pid in pids:
                    try:
                        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    except OSError:
                        continue
                    sessions |= {
                        word.partition("=")[2]
                        for word in words
                        if word.startswith(("--session-dir=", "--session_dir="))
                    }
                time.sleep(0.3)
        finally:
            process.kill()
    said = (folder.parent / "output").read_text()
    assert process.returncode == 0, said[-3000:]
    return folder, said, found, [Path(each) for each in sessions]


@pytest.fixture(scope="module")
def root_of_checkout() -> Path:
    return Path(__file__).resolve().parents[2]


def leaks(place: Path) -> list[str]:
    """Files below a folder that hold a part of a canary, as it stands or in a database's pages."""
    found = []
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink() and MARK.encode() in path.read_bytes():
            found.append(str(path))
    return found


def test_no_secret_in_what_a_run_leaves_or_says(watched):
    folder, said, _, sessions = watched
    assert MARK not in said
    assert leaks(folder) == []
    assert sessions and all(leaks(session) == [] for session in sessions)
    assert (folder / "runs" / "watched" / "report.html").exists()
    # The search would find one: the store holds what it was given.
    database = sqlite3.connect(folder / "mlruns" / "mlflow.db")
    assert database.execute("select count(*) from params").fetchone()[0] > 10
    database.close()


def test_nothing_listens_beyond_loopback(watched):
    found = watched[2]
    commands = " ".join(command for command, _ in found)
    assert all(word in commands for word in ("raylet", "gcs_server", "dashboard", "RayTrainWorker"))
    assert {key: address for key, address in found.items() if address not in LOOPBACK} == {}


def test_what_a_run_leaves_is_its_owners_alone(watched):
    folder, _, _, sessions = watched
    run = folder / "runs" / "watched"
    for place in (run, folder / "runs" / "cache", folder / "mlruns"):
        for path in (place, *place.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for session in sessions:  # Ray opens its folders to all; the files in them are made under our mask
        for path in session.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_files_of_text_say_so_and_what_people_look_at_is_masked(watched):
    folder, said, _, _ = watched
    run = folder / "runs" / "watched"
    for path in run.rglob("*.parquet"):
        columns = set(pl.read_parquet_schema(path))
        assert ("content_warning" in pl.read_parquet_metadata(path)) == bool(
            {"text", "prompt", "ngram", "word", "question"} & columns
        ), path
    assert "hateful" in json.loads((run / "corpus.csv-metadata.json").read_text())["content_warning"]
    texts = [
        each.strip()
        for each in pl.read_parquet(run / "prompts.parquet")["prompt"].to_list()
        if len(each.split()) > 3
    ]
    shown = said + (run / "report.html").read_text() + (run / "report.md").read_text()
    assert texts and not any(each in shown for each in texts)
    stored = sqlite3.connect(folder / "mlruns" / "mlflow.db")
    for table, column in (("params", "value"), ("tags", "value")):
        for (value,) in stored.execute(f"select {column} from {table}"):
            assert not any(each in value for each in texts)
    stored.close()
    cards = [path.read_text() for path in run.glob("models/toxic-*/README.md")]
    assert cards and all("do-not-deploy" in card for card in cards)


def test_a_run_that_fails_says_no_secret_either(tmp_path, root_of_checkout):
    """A model that is not there, with traces switched on: the line, the trace and what was stored."""
    model = tmp_path / f"model-{MARK}-here"
    model.mkdir()
    values = {**EXPERIMENT, "models": {"gpt2": str(model)}, "methods": ["base"]}
    (tmp_path / "e.yaml").write_text(json.dumps(values))
    environment = {**os.environ, **CANARIES, "MODEL_TOKEN": MARK, "PYTHONPATH": str(root_of_checkout)}
    for debug in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "unidetox_ray", "run", "e.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**environment, "UNIDETOX_DEBUG": debug},
        )  # fmt: skip
        assert done.returncode != 0 and MARK not in done.stdout + done.stderr
