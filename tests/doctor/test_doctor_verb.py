"""`unidetox doctor` as a person meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from unidetox_ray.doctor import CHECKS


def call(folder, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    values = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    values |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "HOME": str(folder), **environment}
    return subprocess.run(
        [sys.executable, "-m", "unidetox_ray", "doctor", *map(str, arguments)],
        env=values, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path):
    """The folder that it is called in."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_a_machine_that_will_do(write, elsewhere):
    done = call(elsewhere, write())
    assert done.returncode == 0, done.stdout
    checks = {
        line[9:].split("  ")[0].strip()
        for line in done.stdout.splitlines()
        if line[:7].strip() in ("ok", "warn", "skipped")
    }
    assert checks == set(CHECKS)
    assert ", 0 fail, " in done.stdout.splitlines()[-1] and done.stderr == ""
    assert list(elsewhere.iterdir()) == [], "it leaves nothing behind"


def test_a_failed_line_is_exit_code_1_and_has_its_remedy_below(write, elsewhere):
    done = call(elsewhere, write(), RAY_AUTH_MODE="disabled")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith("fail"))
    assert "ray auth" in lines[number] and lines[number + 1].strip().startswith("-> unset RAY_AUTH_MODE")


def test_json(write, elsewhere):
    done = call(elsewhere, write(), "finetune.steps=5", "--json", RAY_AUTH_MODE="disabled")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert list(dict.fromkeys(line["check"] for line in found)) == list(CHECKS)
    assert {tuple(line) for line in found} == {("status", "seen", "remedy", "check")}
    assert {line["status"] for line in found} <= {"ok", "warn", "fail", "skipped"}


def test_without_an_experiment_and_with_a_wrong_one(write, elsewhere):
    assert call(elsewhere).returncode == 0
    done = call(elsewhere, write(familys=1))
    assert done.returncode == 2 and "did you mean 'families'" in done.stderr and done.stdout == ""
