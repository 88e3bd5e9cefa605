"""`unidetox ui` as a person starts it: the address it prints is the experiment's, and nothing is left when it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from small_store import write_store

from unidetox_ray.tracking import ui_url

ROOT = Path(__file__).resolve().parents[2]


def ui(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "unidetox_ray", "ui", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_it_opens_on_the_experiment_recorded_last_and_leaves_nothing(tmp_path):
    uri = write_store(tmp_path / "mlruns")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = ui(tmp_path, "--port", str(port))
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == f"MLflow: {ui_url(uri, None, port)}\n"
        until = time.monotonic() + 180
        while not listens(port):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.3)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and not listens(port)


def test_without_a_store_it_says_what_to_do(tmp_path):
    process = ui(tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and said.count("\n") == 1 and "run an experiment first" in said


def test_the_view_is_of_the_experiment_that_is_named(tmp_path):
    uri = write_store(tmp_path / "mlruns")
    assert ui_url(uri, "small") == ui_url(uri, "unidetox/small") == ui_url(uri)
    assert "viewStateShareKey=unidetox-cells" in ui_url(uri) and "workflowType=machine_learning" in ui_url(
        uri
    )
    assert ui_url(uri, "nowhere") == "http://127.0.0.1:5000/"
