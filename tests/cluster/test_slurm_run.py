"""The Slurm script with Ray's own `symmetric-run`, on one machine.

symmetric-run ends with `ray stop`, which ends every Ray process that it can see: it runs where it sees its own only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from shipped import CLUSTER, ROOT
from small_experiment import small_experiment

pytestmark = [pytest.mark.ray, pytest.mark.long]

#: A network and processes of its own; `--kill-child`: nothing of it outlives the test.
ALONE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]  # fmt: skip
EXPERIMENT = small_experiment("slurm")


def alone() -> bool:
    """Whether a process here can be shut in with its own kind: at 1, it sees nobody else."""
    if not all(map(shutil.which, ("unshare", "ip"))):
        return False
    done = subprocess.run(
        [*ALONE, "sh", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l"], capture_output=True, text=True
    )
    found = done.stdout.split()
    return done.returncode == 0 and found[:1] == ["1"] and int(found[1]) < 5


@pytest.fixture
def submit(tmp_path):
    if not alone():
        pytest.skip("no process namespaces here (needs root): `ray stop` would end other people's Ray")

    ray_files = tempfile.mkdtemp(prefix="uxs", dir="/tmp")

    def call(values: dict) -> subprocess.CompletedProcess:
        (tmp_path / "slurm.yaml").write_text(json.dumps(values))
        programs = tmp_path / "venv" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        for name, module in (
            ("python", ""),
            ("unidetox", "-m unidetox_ray"),
            ("ray", "-m ray.scripts.scripts"),
        ):
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
            (programs / name).chmod(0o700)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))
        }
        environment |= {
            "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "UNIDETOX_HOME": str(ROOT), "UNIDETOX_VENV": str(programs.parent),
            "UNIDETOX_STORAGE": str(tmp_path / "outputs"), "UNIDETOX_RAY_FILES": ray_files, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }  # fmt: skip
        command = [*ALONE, "bash", CLUSTER / "slurm.sbatch", tmp_path / "slurm.yaml", "--limit", "8"]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=550
        )

    yield call
    shutil.rmtree(ray_files)


def test_a_run_ends_with_its_results_and_leaves_no_token(submit, tmp_path):
    done = submit(EXPERIMENT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    rows = json.loads((tmp_path / "outputs" / "slurm" / "results.json").read_text())
    assert [(row["cell"], row["status"]) for row in rows] == [("gpt2-base-s1234", "ok")]
    assert list((tmp_path / "outputs").glob(".slurm-*")) == [], "the token is still there"


def test_a_run_that_fails_is_a_job_that_fails(submit, tmp_path):
    done = submit({**EXPERIMENT, "familys": 1})
    assert done.returncode == 2, done.stdout[-3000:]
    assert "did you mean 'families'" in done.stdout + done.stderr
    assert list((tmp_path / "outputs").glob(".slurm-*")) == []
