"""Stage `fits`: one fit for entries that differ in strength alone, found again, opened by cells, failing alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from unidetox_ray import registry
from unidetox_ray.artifacts import finished
from unidetox_ray.data.world import World
from unidetox_ray.errors import ConfigError, DataError, ModelError
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages import fits
from unidetox_ray.stages.cells import cells_of, steer, steered_handle
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.generate import GenerateWorker
from unidetox_ray.stages.needs import needed

SMALL = {"steps": 30, "lr": 0.03, "batch_size": 8, "rank": None, "max_length": 32}


def entry(label: str, **settings) -> dict:
    return {"method": "lm_steer", "label": label, "settings": {**SMALL, **settings}}


METHODS = [
    "base",
    entry("weak", strength=1),
    entry("strong", strength=8),
    entry("thin", rank=4),
    entry("off", strength=0),
]


@pytest.fixture(scope="module")
def done(ray_session, models, context_at, tmp_path_factory):
    """(context, cells, fits) of two families, the weights of one of which are damaged."""
    root = tmp_path_factory.mktemp("fits")
    broken = root / "opt"
    shutil.copytree(models["opt"]["path"], broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    context = context_at(root, methods=METHODS, families=["gpt2", "opt"], limit=50)
    bases = {"gpt2": models["gpt2"], "opt": {**models["opt"], "path": str(broken)}}
    cells = cells_of(context.experiment, bases)
    made = fits.run(context, cells, bases)
    steer(cells, Copies(), made)
    return context, {cell.name.rpartition("-")[0]: cell for cell in cells}, made


@pytest.mark.ray
def test_entries_that_differ_in_strength_share_a_fit(done):
    context, cells, made = done
    weak, strong, thin = (made[label, "gpt2"] for label in ("weak", "strong", "thin"))
    assert weak == strong and weak.key != thin.key and ("off", "gpt2") not in made
    facts = weak.manifest.extra
    assert facts["trainable_parameters"] == 2 * 32 * 32 and facts["fit_seconds"] > 0
    assert facts["texts_per_kind"] == 50  # the limit of a smoke run
    assert facts["final_loss"] > 0 and facts["first_loss"] > 0
    assert finished(weak.folder, weak.key) is not None
    assert {path.name for path in weak.folder.iterdir()} == {
        "manifest.json", "settings.json", "steer.json", "steer.safetensors",
    }  # fmt: skip
    assert weak.folder.parent == context.folder.root / "models"
    assert not list((context.folder.root / "stages").glob("fit-texts-*"))
    handles = [cells[f"gpt2-{label}"].model for label in ("weak", "strong", "thin", "off")]
    assert len({handle["key"] for handle in handles}) == 4
    assert handles[0]["steer"]["fit"] == handles[1]["steer"]["fit"] == str(weak.folder)
    assert handles[3]["steer"]["fit"] is None
    told = cells["gpt2-strong"].settings
    assert told["fit_key"] == weak.key and told["steer_norm"] == pytest.approx(8 * facts["step_norm"])
    assert cells["gpt2-strong"].fit == weak.manifest


@pytest.mark.ray
def test_a_fit_that_fails_fails_its_own_cells_with_its_words(done):
    _, cells, made = done
    error = made["weak", "opt"]
    assert isinstance(error, ModelError) and str(error).startswith("fits: lm_steer-opt: ")
    for label in ("weak", "strong", "thin"):
        assert cells[f"opt-{label}"].model is None
        assert (
            cells[f"opt-{label}"].error.startswith("fits: lm_steer-opt: ")
            and "\n" not in cells[f"opt-{label}"].error
        )
    assert cells["opt-off"].error is None and cells["opt-off"].model is not None


@pytest.mark.ray
def test_what_is_finished_is_found_again_and_the_key_holds_all_that_shapes_it(done, models, context_at):
    context, _, made = done
    method = registry.lookup("methods", "lm_steer")

    def want(**settings):
        return fits.Want(method, method.settings.model_validate({**SMALL, **settings}), models["gpt2"])

    found = fits.make(context, {"a": want(strength=3.5), "b": want(dummy_value=1)})
    assert found["a"] == found["b"] == made["weak", "gpt2"] and context.stages[-1]["reused"]
    key = made["weak", "gpt2"].key
    keys = [
        fits._task(context, want(**change))["key"]
        for change in ({}, {"lr": 0.02}, {"epsilon": 0.1}, {"dummy": False})
    ]
    for values in (
        {"limit": 51},
        {"seed": 9},
        {"evaluate": {"precision": "bf16"}},
        {"data": {**_data(), "toxic": _world(5)}},
    ):
        other = context_at(context.folder.root.parent, methods=METHODS, **{"limit": 50, **values})
        keys.append(fits._task(other, want())["key"])
    assert keys[0] == key and len(set(keys)) == len(keys) == 8
    assert fits.make(context, {}) == {}


def _world(seed: int) -> dict:
    return {"dataset": "world", "options": {"seed": seed}}


def _data() -> dict:
    return {**dict.fromkeys(("toxic", "prompts", "clean", "mmlu", "scorer"), "world"), "pretrain": ["world"]}


@pytest.mark.ray
def test_cells_are_decoded_with_their_fit(done, models, tmp_path):
    _, cells, _ = done
    table = World().prompts(test=4, validation=4).filter(pl.col("split") == "test")
    table.write_parquet(tmp_path / "prompts.parquet")
    evaluate = EvaluateSection(continuations=3, max_new_tokens=8, runs=1)
    settings = {"evaluate": evaluate.model_dump(mode="json"), "prompts": str(tmp_path / "prompts.parquet"), "decode_rows": 64, "threads": 1}  # fmt: skip
    worker = GenerateWorker(settings)

    def texts(handle):
        order = {
            "first": 0,
            "prompts": table.height,
            "model": json.loads(json.dumps(handle)),
            "cell": "c",
            "run": 0,
        }
        found = worker.work(order)
        rows = getattr(found, "table", found)
        assert rows["error"].null_count() == rows.height, rows["error"].drop_nulls().to_list()[:1]
        return rows["text"].to_list()

    base = texts(models["gpt2"])
    assert texts(cells["gpt2-off"].model) == base
    weak, strong = (texts(cells[f"gpt2-{label}"].model) for label in ("weak", "strong"))
    assert weak != strong and base not in (weak, strong)


def test_a_cell_without_its_fit_says_so(models, make_context):
    context = make_context("run", methods=METHODS)
    cells = cells_of(context.experiment, {"gpt2": models["gpt2"]})
    steer(cells, Copies())
    errors = {cell.method.label: cell.error for cell in cells}
    assert errors["weak"] == "needs a fit of weak on gpt2, which was not made" and errors["off"] is None


def test_fits_need_both_kinds_of_text(make_context, tmp_path, models):
    data = {**_data(), "clean": None}
    context = make_context("none", methods=METHODS, data=data)
    with pytest.raises(
        ConfigError, match=r"^methods\.weak: is fitted on toxic and clean text, but data\.clean is null"
    ):
        needed(context.experiment)
    assert (
        needed(make_context("off", methods=["base", entry("off", strength=0)], data=data).experiment).fits
        == ()
    )
    both = make_context("both", methods=METHODS, data=_data()).experiment
    assert needed(both).fits == ("weak", "strong", "thin") and needed(both).copies == ()
    (tmp_path / "clean.txt").write_text("A text that is clean.\n")
    text = {"dataset": "text", "path": str(tmp_path / "clean.txt"), "options": {"test_files": ["*.txt"]}}
    lacking = make_context("lacking", methods=METHODS, data={**_data(), "clean": text})
    with pytest.raises(DataError, match=r"^data\.clean: holds no text in split 'train'"):
        fits._texts(lacking)


def test_a_handle_can_be_made_without_a_cell(models):
    method = registry.lookup("methods", "lm_steer")
    one, two = (
        steered_handle(models["gpt2"], method, method.settings(), {}, Path("/fits/a"), key)
        for key in ("a", "b")
    )
    assert (
        one["key"] != two["key"]
        and one["steer"]["fit"] == "/fits/a"
        and one["path"] == models["gpt2"]["path"]
    )
