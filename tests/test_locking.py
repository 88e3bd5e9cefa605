"""One writer per folder, by real processes: the second is refused or waits, and a dead one holds nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from unidetox_ray.errors import ConfigError
from unidetox_ray.locking import HOLDER, only_writer, turn

HOLD = """
import sys, time
from pathlib import Path
from unidetox_ray.locking import only_writer
with only_writer(Path(sys.argv[1]), "the run 'x'"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path for a minute."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_writer_is_refused_and_told_who_has_it(tmp_path, other):
    with pytest.raises(ConfigError) as problem, only_writer(tmp_path, "the run 'x'"):
        raise AssertionError("two writers")
    text = str(problem.value)
    assert (
        "the run 'x' is being written by" in text and f"process {other.pid} on" in text and "\n" not in text
    )


def test_a_writer_that_was_killed_holds_nothing(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / HOLDER).exists()  # it had no time to remove it
    with only_writer(tmp_path, "the run 'x'"):
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    assert not (tmp_path / HOLDER).exists()


def test_a_turn_waits_and_says_for_whom(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path), "1.0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    said: list[str] = []
    started = time.monotonic()
    with turn(tmp_path, "a model", said.append):
        waited = time.monotonic() - started
    assert process.wait() == 0
    assert waited > 0.5 and len(said) == 1 and f"process {process.pid}" in said[0]


def test_a_free_lock_is_had_at_once_and_again(tmp_path):
    said: list[str] = []
    for _ in range(2):
        with turn(tmp_path, "a model", said.append):
            pass
    assert said == []
