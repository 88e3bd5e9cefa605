"""`detoxify` on a device with less room than was estimated: it goes down to what fits, or says what to name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from drivers import planted

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

#: A device that has room for so many texts at once.
ROOM = """
def arm(module):
    honest = module.run_job
    def crowded(job, *rest, **named):
        rows = job.loop["micro_batch"] or job.loop["batch_size"]
        if rows > {room}:
            import torch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return honest(job, *rest, **named)
    module.run_job = crowded
"""


def detoxify(root: Path, model: Path, room: int, *settings: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = planted(root, "unidetox_ray.stages.training", ROOM.replace("{room}", str(room)))
    corpus = root / "corpus.csv"
    corpus.write_text("text\n" + "\n".join(f"the fox sings song {number}" for number in range(16)))
    return subprocess.run(
        [
            sys.executable, "-m", "unidetox_ray", "detoxify", str(model), "--corpus", str(corpus), "--out", str(root / "out"),
            "--no-evaluate", "steps=2", "batch_size=8", "max_length=16", *settings,
        ],
        cwd=root, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_half_as_many_texts_at_once_until_they_fit(tmp_path, undisturbed):
    model = next((undisturbed.parents[2] / "cache").glob("gpt2-*/config.json")).parent
    done = detoxify(tmp_path, model, 2)
    assert done.returncode == 0, done.stderr
    for before, after in ((8, 4), (4, 2)):
        assert (
            f"out of memory with {before} texts at once, more than was estimated: once more with {after}"
            in done.stderr + done.stdout
        )
    facts = json.loads((tmp_path / "out" / "detoxify.json").read_text())
    assert (facts["fit"]["rows_at_once"], facts["fit"]["pieces"]) == (2, 4)
    assert facts["training"]["steps"] == 2


def test_what_the_user_named_is_not_changed(tmp_path, undisturbed):
    model = next((undisturbed.parents[2] / "cache").glob("gpt2-*/config.json")).parent
    failed = detoxify(tmp_path, model, 2, "micro_batch=4")
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("unidetox: ")]
    assert failed.returncode == 1 and not (tmp_path / "out").exists()
    assert (
        "out of memory on cpu with 4 texts of at most 16 tokens at once" in line
        and "finetune.micro_batch" in line
    )
