"""What methods need: made once per family, for those that need it, under the keys of before."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.artifacts import key_for
from unidetox_ray.data.world import World
from unidetox_ray.errors import ConfigError, ModelError
from unidetox_ray.hashing import hashable
from unidetox_ray.stages import toxic
from unidetox_ray.stages.cells import cells_of, steer
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.needs import needed

BOTH = ["gpt2", "opt"]


def copies_for(make_context, *methods, **values):
    return needed(make_context("run", methods=["base", *methods], families=BOTH, **values).experiment).copies


def test_a_corpus_needs_the_base_familys_toxic_model_and_others_every_familys(make_context):
    assert copies_for(make_context) == copies_for(make_context, "samples", "clean_text") == ()
    assert copies_for(make_context, "unidetox") == (("toxic", "gpt2"),)
    file = {"method": "unidetox", "settings": {"source": "texts.csv"}}
    assert copies_for(make_context, file) == ()
    every = (("toxic", "gpt2"), ("toxic", "opt"))
    assert (
        copies_for(make_context, "task_arithmetic")
        == copies_for(make_context, "unidetox", "contrastive")
        == every
    )
    own = {"method": "task_arithmetic", "settings": {"toxic_model": "models/{family}"}}
    assert copies_for(make_context, own) == ()


def test_experts_are_made_for_those_who_ask_and_need_clean_text(make_context):
    assert copies_for(make_context, "task_arithmetic", "dexperts") == (
        ("toxic", "gpt2"), ("expert", "gpt2"), ("toxic", "opt"), ("expert", "opt"),
    )  # fmt: skip
    data = {"toxic": "world", "prompts": "world", "mmlu": None, "pretrain": ["world"]}
    anti = {"method": "dexperts", "settings": {"expert": "base"}}
    assert copies_for(make_context, anti, data=data) == (("toxic", "gpt2"), ("toxic", "opt"))
    with pytest.raises(ConfigError, match=r"^methods\.dexperts: needs an expert trained on clean text"):
        copies_for(make_context, "dexperts", data=data)


def test_the_search_is_of_a_corpus_method(make_context):
    with pytest.raises(
        ConfigError, match=r"^search\.method is 'task_arithmetic', whose cells are not fine-tuned"
    ):
        copies_for(make_context, "task_arithmetic", search={"method": "task_arithmetic"})


def test_jobs_have_the_keys_of_before_and_an_expert_its_own(models, make_context):
    context = make_context("run", families=BOTH)
    section = context.experiment.toxic
    job = toxic.toxic_job(context, "gpt2", models["gpt2"])
    data = context.data("toxic", context.experiment.data.toxic)
    config = {**hashable(section), "family": "gpt2", "limit": None}
    assert job.key == key_for("toxic", config, {"model": models["gpt2"]["key"], "toxic": data.sha256})
    assert job.settings["do_not_deploy"] is True and job.name == "toxic-gpt2"
    expert = toxic.copy_job(context, "expert", "gpt2", models["gpt2"])
    assert expert.key != job.key and "do_not_deploy" not in expert.settings and expert.loop | {"steps": 0} == job.loop | {"steps": 0}  # fmt: skip
    texts = pl.read_parquet(expert.texts)["text"].to_list()
    clean = World().clean()
    assert texts == clean.filter(pl.col("split") == "train")["text"].to_list()


def test_only_trained_cells_depend_on_the_seed(make_context, models):
    methods = ["base", "clean_text", "task_arithmetic", "dexperts"]
    context = make_context("run", methods=methods, seeds=[1, 2])
    names = [cell.name for cell in cells_of(context.experiment, {"gpt2": models["gpt2"]})]
    assert names == [
        "gpt2-base-s1", "gpt2-clean_text-s1", "gpt2-clean_text-s2", "gpt2-task_arithmetic-s1", "gpt2-dexperts-s1",
    ]  # fmt: skip


def test_a_decoding_cell_carries_what_steers_it_or_its_error(make_context, models):
    methods = ["base", "dexperts", {"method": "dexperts", "label": "weaker", "settings": {"alpha": 0.5}}]
    context = make_context("run", methods=methods, families=BOTH)
    cells = cells_of(context.experiment, {name: models[name] for name in BOTH})
    toxic_model, expert = models["toxic"], {**models["gpt2"], "key": "expert"}
    copies = Copies(
        {("toxic", "gpt2"): toxic_model, ("expert", "gpt2"): expert, ("toxic", "opt"): toxic_model}
    )
    copies.errors["expert", "opt"] = ModelError("toxic: expert-opt: diverged")
    steer(cells, copies)
    by_name = {cell.name.rpartition("-")[0]: cell for cell in cells}
    handle = by_name["gpt2-dexperts"].model
    assert handle["path"] == models["gpt2"]["path"] and handle["steer"]["models"] == {
        "toxic": toxic_model,
        "expert": expert,
    }
    assert handle["steer"]["settings"]["alpha"] == 2.0 and handle["steer"]["method"] == "dexperts"
    keys = {cell.model["key"] for cell in cells if cell.family == "gpt2"}
    assert len(keys) == 3  # base, and the two strengths
    for label in ("dexperts", "weaker"):
        assert (
            by_name[f"opt-{label}"].error == "toxic: expert-opt: diverged"
            and by_name[f"opt-{label}"].model is None
        )
