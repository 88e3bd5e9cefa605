"""What a cell's training is: steps or passes, whole models or adapters, as its method asks."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest
import torch

from unidetox_ray.cards import model_card
from unidetox_ray.config import resolve
from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.streams import uniforms
from unidetox_ray.errors import ConfigError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.families.loading import load_model
from unidetox_ray.families.runners import runner_of
from unidetox_ray.settings import FinetuneSection
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.finetune import cell_job, training_of
from unidetox_ray.stages.training import unwrapped, with_adapter

BASE = {"path": "base", "revision": None, "key": "k", "family": "gpt2", "name": "base"}


def cell_of(method="sgeat", **settings):
    return Cell("cell", "gpt2", MethodEntry(method=method, label=method, settings=settings), 1, BASE)


@pytest.fixture
def job_of(make_context, tmp_path):
    """The job of a section on a corpus of 21 texts."""
    pl.DataFrame({"text": ["text"] * 21, "ended": [True] * 21}).write_parquet(tmp_path / "corpus.parquet")
    manifest = SimpleNamespace(key="c", extra={"sha256": "0" * 64})
    context = make_context()
    return lambda section, cell: cell_job(context, cell, training_of(cell, section), (tmp_path, manifest))


def test_epochs_are_passes_over_the_corpus(job_of):
    section = FinetuneSection(steps=50, batch_size=4)
    assert job_of(section, cell_of()).loop["steps"] == 50
    three = job_of(section, cell_of(epochs=3))
    assert three.loop["steps"] == three.settings["steps"] == 3 * 6  # the last of 6 batches has one text
    assert job_of(section.model_copy(update={"epochs": 2}), cell_of("samples")).loop["steps"] == 12
    with pytest.raises(ConfigError, match="cell: epochs are counted in texts"):
        job_of(section.model_copy(update={"packing": True}), cell_of(epochs=3))
    values = {"name": "x", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base"]}
    with pytest.raises(ConfigError, match="epochs are counted in texts"):
        resolve({**values, "finetune": {"epochs": 3, "packing": True}})


@pytest.mark.parametrize("method", ["sgeat", "dapt"])
def test_the_methods_training_takes_the_place_of_the_experiments(job_of, method):
    section = FinetuneSection(adapter="lora", bottleneck={"size": 7}, lora={"rank": 3})
    asked = {
        name: job_of(section, cell_of(method, training=name)) for name in ("whole", "bottleneck", "lora")
    }
    assert asked["whole"].adapter is None
    assert asked["bottleneck"].adapter == {"kind": "bottleneck", "size": 7}
    assert asked["lora"].adapter == {"kind": "lora", "rank": 3, "alpha": 32.0, "dropout": 0.0}
    assert len({job.key for job in asked.values()}) == 3
    # Not asked: as the experiment says, and with the key of any other corpus method's cell.
    assert job_of(section, cell_of(method)).adapter == asked["lora"].adapter
    assert (
        job_of(section, cell_of(method)).key == job_of(section, cell_of("samples")).key == asked["lora"].key
    )


@pytest.mark.parametrize("family", ["gpt2", "falcon"])
@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_adapters_in_training_are_measured_as_they_are(models, family, kind):
    """As the search does it, in the middle of a training: by decoding, before anything is merged or saved."""
    path = models[family]["path"]
    adapter = {"kind": kind, "rank": 4, "alpha": 8.0, "dropout": 0.0, "size": 4}
    model = with_adapter(load_model(path), adapter, 1)
    plain = load_model(path)
    ids, draw = torch.tensor([[5, 9, 3]]), torch.Generator().manual_seed(3)
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape, generator=draw))
    asked = {"uniform": uniforms(1, range(6), 8), "max_new_tokens": 8, "end_ids": [0], "copies": 3}
    found = decode([runner_of(unwrapped(model))], [[3, 4, 5], [6]], pad_id=0, **asked)
    assert found == decode_slowly([model], [[3, 4, 5], [6]], **asked)
    assert found != decode([runner_of(plain)], [[3, 4, 5], [6]], pad_id=0, **asked)
    assert unwrapped(plain) is plain


def test_the_card_of_adapters_says_how_they_open(job_of):
    section = FinetuneSection()
    cards = {
        name: model_card(job_of(section, cell_of(training=name)).settings, {"texts": 21}, base="base")
        for name in ("whole", "bottleneck")
    }
    assert "load_model(folder)" in cards["bottleneck"] and "load_model" not in cards["whole"]


def test_a_rate_of_its_own_stands_and_a_tuned_one_is_taken_without(job_of):
    section = FinetuneSection(lr=1e-5)
    assert job_of(section, cell_of(lr=1e-3)).loop["lr"] == 1e-3
    tuned = cell_of()
    tuned.training_values = {"lr": 4e-4, "steps": 30}
    job = job_of(section, tuned)
    assert job.loop["lr"] == 4e-4 and job.loop["steps"] == 30
