"""A model that cannot be opened costs its own cell, and is tried again once it can be."""

from __future__ import annotations

import shutil

import polars as pl
import pytest

from unidetox_ray.errors import StageError
from unidetox_ray.settings import ModelRef
from unidetox_ray.stages import generate
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.models import handle_of

pytestmark = pytest.mark.ray


@pytest.fixture
def given(models, tmp_path):
    """A copy of a model whose weights are cut short, with the handle of the whole one: a disk that came loose."""
    folder = tmp_path / "loose"
    shutil.copytree(models.root / "opt", folder)
    handle = handle_of(ModelRef(source=str(folder)), "opt")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:4000])
    return folder, handle, whole


def cells(experiment, *handles):
    entry = experiment.methods[0]
    made = [Cell(f"{h['family']}-base", h["family"], entry, 1, h) for h in handles]
    for cell in made:
        cell.model = cell.base
    return made


def test_a_model_that_cannot_be_opened(ray_session, models, given, make_context):
    folder, handle, whole = given
    changes = ("evaluate.continuations=2", "evaluate.max_new_tokens=4", "evaluate.runs=1")

    def run(*handles):
        context = make_context("run", *changes, limit=4)
        made = cells(context.experiment, *handles)
        place, manifest = generate.run(context, made)
        return made, pl.read_parquet(place / "generations.parquet"), manifest, context.stages[-1]["reused"]

    (good, lost), table, manifest, _ = run(models["gpt2"], handle)
    assert good.error is None and good.model is not None
    assert lost.model is None and lost.error.startswith("model not opened: loose")
    assert set(table["cell"]) == {"gpt2-base"} and table.height == 8
    assert manifest.counts == {"expected": 8, "ok": 8, "failed": 0}
    took = manifest.extra["decode"]
    assert set(took) == {"gpt2-base"} and took["gpt2-base"]["seconds"] > 0

    # Tried again by the next run; the good cell's text is kept.
    (folder / "model.safetensors").write_bytes(whole)
    (_, mended), after, manifest, reused = run(models["gpt2"], handle)
    assert mended.error is None and mended.model is not None and not reused
    assert manifest.counts["expected"] == after.height == 16
    assert after.filter(pl.col("cell") == "gpt2-base").equals(table)
    # Its seconds are those of the run that decoded it.
    again = manifest.extra["decode"]
    assert again["gpt2-base"] == took["gpt2-base"] and again["opt-base"]["seconds"] > 0
    assert run(models["gpt2"], handle)[3]  # and then it is done


def test_no_model_at_all_is_an_error(ray_session, given, make_context):
    _, handle, _ = given
    context = make_context(
        "run", "evaluate.continuations=2", "evaluate.max_new_tokens=4", "evaluate.runs=1", limit=4
    )
    with pytest.raises(StageError, match="no cell gave a text; model not opened: loose"):
        generate.run(context, cells(context.experiment, handle))
    dead = cells(context.experiment, handle)
    dead[0].model = None
    with pytest.raises(StageError, match="every cell failed"):
        generate.run(context, dead)
