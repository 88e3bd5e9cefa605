"""SIGKILL of the processes that do the work. The run goes on by itself; a row that kills every worker costs itself alone."""

from __future__ import annotations

import time

import polars as pl
import pytest
from drivers import MOMENTS, Driver, begun, experiment, gone, leftovers, planted, same_results

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

#: The fault is put into the real worker.
POISON = """
def arm(module):
    honest = module.continuations
    def deadly(model, tokenizer, prompts, settings, **rest):
        if any(prompt_id == os.environ["POISON"] for prompt_id, _ in prompts):
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(model, tokenizer, prompts, settings, **rest)
    module.continuations = deadly
"""

#: How the process is titled that does the work of each.
WORKERS = {
    "models/toxic-gpt2": "RayTrainWorker", "stages/corpus-unidetox": "MapWorker", "stages/search": "ImplicitFunc",
    "models/gpt2-unidetox": "RayTrainWorker", "stages/generate": "MapWorker", "stages/score": "MapWorker",
}  # fmt: skip


def kill_one(driver: Driver, title: str) -> None:
    """SIGKILL a worker of this title."""
    deadline = time.monotonic() + 120
    while not (found := driver.workers(title)):
        assert driver.process.poll() is None, driver.output
        assert time.monotonic() < deadline, f"no worker called {title}:\n{driver.output}"
        time.sleep(0.02)
    found[0].kill()
    assert gone(found[:1]) == []


def test_a_worker_killed_in_every_stage_is_replaced_and_the_run_ends_with_the_same(place, undisturbed):
    driver = Driver(experiment(place / "workers"))
    for stage, title in WORKERS.items():
        driver.until(MOMENTS[stage])
        kill_one(driver, title)
    assert driver.wait() == 0, driver.output
    same_results(driver.folder, undisturbed)
    assert leftovers(driver.folder) == []


@pytest.mark.brief
def test_a_row_that_kills_every_worker_costs_itself_alone(undisturbed, tmp_path):
    prompts = pl.read_parquet(undisturbed / "generations.parquet")["prompt_id"].unique(maintain_order=True)
    poison = prompts[3]
    environment = {**planted(tmp_path, "unidetox_ray.stages.continuations", POISON), "POISON": poison}
    path = begun(
        undisturbed, tmp_path / "poison", ("stages/generate", "stages/score"),
        cluster={"num_cpus": 2, "prompts_per_order": 2, "max_restarts": 1},
    )  # fmt: skip
    driver = Driver(path, environment=environment)
    assert driver.wait() == 0, driver.output
    mine, theirs = (
        pl.read_parquet(folder / "generations.parquet") for folder in (driver.folder, undisturbed)
    )
    lost = mine.filter(pl.col("text").is_null())
    assert lost["prompt_id"].unique().to_list() == [poison]
    assert lost["error"].str.contains("killed its worker").all()
    kept = pl.col("prompt_id") != poison
    assert mine.filter(kept).equals(theirs.filter(kept))
    scores = pl.read_parquet(driver.folder / "scores.parquet").filter(pl.col("prompt_id") == poison)
    assert scores.height and scores["value"].null_count() == scores.height, "a failure became a number"
