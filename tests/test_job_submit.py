"""`ray job submit` against a head of our own on loopback, with token authentication: the way onto a shared cluster."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from small_experiment import small_experiment

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
RAY = Path(sys.executable).with_name("ray")
EXPERIMENT = small_experiment("submitted", methods=["base", "samples"])
#: Secrets of the cluster and of whoever submits; a find says which leaked.
MARK = "5e1c2a90d7"
CANARIES = {
    name: f"canary-{MARK}-{name.lower()}"
    for name in ("HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY")
}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all are held while they are looked for, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def listed(address: str, environment: dict[str, str]) -> bool:
    """Whether the head takes questions yet; one asked too early can hang."""
    question = [RAY, "job", "list", "--address", address]
    try:
        return subprocess.run(question, env=environment, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """(address of the dashboard, environment, Ray's own folder) of a head that is started here and ended by its process id."""
    place = tmp_path_factory.mktemp("head")
    # Sockets below Ray's folder: their paths may hold some hundred characters at most.
    short = Path(tempfile.mkdtemp(prefix="uxr", dir="/tmp"))
    token = place / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and name != "PYTHONPATH"
    }
    environment |= {
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        # The head ends without waiting half a minute for its own node to drain.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1",
        **CANARIES,
    }  # fmt: skip
    names = (
        "port",
        "dashboard-port",
        "ray-client-server-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
    )
    names += ("metrics-export-port", "node-manager-port", "object-manager-port", "runtime-env-agent-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    log = place / "head.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
             f"--temp-dir={short}", *(f"--{name}={port}" for name, port in ports.items())],
            env=environment, stdout=stream, stderr=subprocess.STDOUT, cwd=place,
        )  # fmt: skip
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        until = time.monotonic() + 180
        while not listed(address, environment):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(1)
        yield address, environment, short
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory) -> Path:
    """What a person would send along: the package and the experiments, nothing else of the checkout."""
    folder = tmp_path_factory.mktemp("working")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("unidetox_ray", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "experiments" / "submitted.yaml").write_text(json.dumps(EXPERIMENT), encoding="utf-8")
    (folder / "experiments" / "wrong.yaml").write_text(
        json.dumps({**EXPERIMENT, "familys": 1}), encoding="utf-8"
    )
    return folder


def submit(head, working_dir: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Submit, follow to the end, and say how it ended."""
    address, environment, _ = head
    return subprocess.run(
        [RAY, "job", "submit", "--address", address, "--submission-id", name, "--working-dir", working_dir, "--",
         "python", "-m", "unidetox_ray", *arguments],
        env=environment, cwd=working_dir, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def status(head, name: str) -> str:
    address, environment, _ = head
    done = subprocess.run(
        [RAY, "job", "status", "--address", address, name], env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.long
def test_a_submitted_experiment_succeeds_and_leaves_its_results(head, working_dir, tmp_path):
    storage = tmp_path / "stored"
    done = submit(
        head, working_dir, "good", "run", "experiments/submitted.yaml", f"storage={storage}", "--limit", "8"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "succeeded" in status(head, "good").lower()
    rows = json.loads((storage / "submitted" / "results.json").read_text())
    assert [(row["cell"], row["status"]) for row in rows] == [
        ("gpt2-base-s1234", "ok"), ("gpt2-samples-s1234", "ok")
    ]  # fmt: skip
    assert all(0 <= row["metrics"]["tp_all"]["value"] <= 1 for row in rows)
    assert (storage / "submitted" / "report.html").exists()
    # What the person sees who follows the job.
    assert "gpt2-samples-s1234" in done.stdout
    assert str(storage / "submitted") in done.stdout
    address, environment, session = head
    job = subprocess.run([RAY, "job", "list", "--address", address], env=environment, capture_output=True, text=True, timeout=120).stdout  # fmt: skip
    assert "submission_id='good'" in job
    assert MARK not in job + done.stdout + done.stderr
    files = [
        path for folder in (session, tmp_path, working_dir) for path in folder.rglob("*") if path.is_file()
    ]
    assert any(path.name.startswith("job-driver-good") for path in files), "Ray's logs were not looked at"
    assert [path for path in files if MARK.encode() in path.read_bytes()] == []


def test_a_failing_experiment_ends_failed_with_its_reason(head, working_dir, tmp_path):
    done = submit(head, working_dir, "bad", "run", "experiments/wrong.yaml", f"storage={tmp_path / 'stored'}")
    assert done.returncode != 0
    assert "did you mean 'families'" in done.stdout + done.stderr
    assert "failed" in status(head, "bad").lower()
    assert not (tmp_path / "stored").exists()


def test_without_the_token_nobody_submits(head, working_dir, tmp_path):
    address, environment, _ = head
    other = tmp_path / "other-token"
    other.write_text(secrets.token_hex(32))
    stranger = address, {**environment, "RAY_AUTH_TOKEN_PATH": str(other)}, None
    done = submit(stranger, working_dir, "stranger", "ls", "families")
    assert done.returncode != 0
    assert "stranger" not in subprocess.run(
        [RAY, "job", "list", "--address", address], env=environment, capture_output=True, text=True, timeout=120
    ).stdout  # fmt: skip
