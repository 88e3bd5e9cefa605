"""One model of several does not load, diverges or runs out of memory: its cells fail with the reason, the others finish, code 3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from drivers import SCRATCH, Driver, experiment, gone, planted
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

#: Out of memory while Falcon is trained.
FULL = """
def arm(module):
    honest = module.run_job
    def greedy(job, *rest, **named):
        if job.name.startswith("falcon"):
            import torch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return honest(job, *rest, **named)
    module.run_job = greedy
"""


def broken_models(cache: Path, root: Path) -> dict[str, str]:
    """Folders made of the session's pre-trained GPT-2: one whose weights are cut off, one that holds a NaN."""
    source = next(cache.glob("gpt2-*/config.json")).parent
    folders = {name: root / name for name in ("cut", "nan")}
    for folder in folders.values():
        shutil.copytree(source, folder)
        (folder / "manifest.json").unlink()
    cut = folders["cut"] / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    weights = load_file(folders["nan"] / "model.safetensors")
    name = next(name for name in weights if name.endswith("ln_f.weight"))
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, folders["nan"] / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return {name: str(folder) for name, folder in folders.items()}


@pytest.mark.brief
def test_models_that_fail_cost_their_own_cells_alone(tmp_path, undisturbed):
    cache = undisturbed.parents[2] / "cache"
    folders = broken_models(cache, tmp_path)
    good = {"source": "scratch:", "scratch": SCRATCH}
    path = experiment(
        tmp_path, cache=str(cache), search=None, families=["gpt2", "opt", "llama", "falcon"],
        models={"gpt2": good, "falcon": good, "opt": {"source": folders["cut"]}, "llama": {"source": folders["nan"]}},
    )  # fmt: skip
    environment = planted(tmp_path, "unidetox_ray.stages.training", FULL)
    driver = Driver(path, environment=environment)
    children = driver.children()
    assert driver.wait() == 3, driver.output
    assert gone(children) == []
    rows = {
        f"{row['family']}-{row['method']}": row
        for row in json.loads((driver.folder / "results.json").read_text())
    }
    reasons = {
        "opt-base": "cut: cannot be loaded", "opt-unidetox": "cut: cannot be loaded", "llama-base": "scores are not finite",
        "llama-unidetox": "loss is nan at step 0", "falcon-unidetox": "out of memory",
    }  # fmt: skip
    assert len(rows) == 8
    for name, row in rows.items():
        if name in reasons:
            assert row["status"] == "failed" and row["metrics"] == {}, name
            assert reasons[name] in row["error"] and "\n" not in row["error"], row["error"]
        else:
            assert row["status"] == "ok" and row["metrics"]["clean_ppl"]["value"] > 1, name
    assert driver.output.count("failed: ") == len(reasons)
