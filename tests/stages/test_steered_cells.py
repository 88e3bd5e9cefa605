"""Cells of decoding methods: opened with what steers them, decoded and measured by the ordinary workers."""

from __future__ import annotations

import gc
import time
import weakref

import polars as pl
import pytest
import torch

from unidetox_ray.core.steered import SteeredModel
from unidetox_ray.data.world import World
from unidetox_ray.errors import ModelError
from unidetox_ray.families.loading import load_model
from unidetox_ray.families.runners import runner_of
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages.generate import GenerateWorker
from unidetox_ray.stages.opening import OpenModel
from unidetox_ray.stages.score import ScoreWorker

EVALUATE = EvaluateSection(continuations=3, max_new_tokens=8, runs=1, clean_max_length=32)


@pytest.fixture(scope="module")
def steer(models):
    """Makes the handle of a decoding cell on gpt2; "toxic" there is a gpt2 that saw other text."""

    def handle(method="dexperts", toxic="toxic", **settings):
        given = {"toxic": models[toxic]} | ({"expert": models["gpt2"]} if method == "dexperts" else {})
        what = {"method": method, "settings": settings, "models": given, "fit": None}
        return {**models["gpt2"], "key": f"{method}-{settings}", "steer": what}

    return handle


@pytest.fixture
def done(tmp_path):
    """Orders of one cell: the table and what it cost."""
    table = World().prompts(test=4, validation=4).filter(pl.col("split") == "test")
    table.write_parquet(tmp_path / "prompts.parquet")
    worker = GenerateWorker(
        {"evaluate": EVALUATE.model_dump(mode="json"), "prompts": str(tmp_path / "prompts.parquet"), "decode_rows": 64, "threads": 1}
    )  # fmt: skip

    def work(handle):
        order = {"first": 0, "prompts": table.height, "model": handle, "cell": "c", "run": 0}
        return worker.work(order)

    return work


@pytest.fixture
def generate(done):
    return lambda handle: done(handle).table


def test_cells_of_one_path_with_other_steering_do_not_share_a_model(models, steer, generate):
    base = generate(models["gpt2"])
    strong = generate(steer(alpha=4.0))
    assert base["error"].null_count() == strong["error"].null_count() == base.height
    assert not strong.equals(base)
    other = generate(steer("contrastive"))
    assert not other.equals(strong) and not other.equals(base)
    # In whatever order they come.
    assert generate(models["gpt2"]).equals(base)
    assert generate(steer(alpha=4.0)).equals(strong)


@pytest.mark.parametrize("handle", [("dexperts", {"alpha": 0.0}), ("contrastive", {"beta": 0.0})])
def test_at_strength_0_a_cell_has_the_base_cells_text(models, steer, generate, handle):
    method, settings = handle
    assert EVALUATE.top_p == 0.9  # what dexperts filters with
    assert generate(steer(method, **settings)).equals(generate(models["gpt2"]))


def test_a_model_of_another_family_costs_the_cell_one_line(steer, generate):
    rows = generate(steer(toxic="opt"))
    errors = rows["error"].unique().to_list()
    assert rows["text"].null_count() == rows.height and len(errors) == 1
    assert errors[0].startswith("model not opened: gpt2: the toxic model's tokenizer is not the base model's")
    assert "\n" not in errors[0]


def test_a_cell_says_what_its_decoding_took(models, steer, done):
    started = time.perf_counter()
    base, steered, lost = done(models["gpt2"]), done(steer()), done(steer(toxic="opt"))
    passed = time.perf_counter() - started
    for made in (base, steered):
        assert set(made.facts) == {"decode_seconds", "weight_bytes", "extra_bytes"}
        assert made.facts["decode_seconds"] > 0
    # The clock stands while models are opened, which here takes most of the time.
    assert base.facts["decode_seconds"] + steered.facts["decode_seconds"] < passed
    model = load_model(models["gpt2"]["path"])
    weights = sum(weight.numel() * 4 for weight in model.parameters())
    assert base.facts["weight_bytes"] == weights and base.facts["extra_bytes"] is None
    # The expert's folder is the base's: the toxic model alone comes on top.
    assert steered.facts["weight_bytes"] == steered.facts["extra_bytes"] == weights
    assert lost.facts == {} and lost.table["text"].null_count() == lost.table.height


def test_models_are_let_go_when_the_cell_changes(models, steer):
    opening = OpenModel("cpu", "fp32")
    model, tokenizer = opening.open(steer())
    # The expert's folder is the base's here: loaded once, run once.
    assert isinstance(model, SteeredModel) and model.steering.mixture.weights == (3.0, -2.0)
    assert tokenizer.get_vocab() and opening.open(steer()) == (model, tokenizer)
    parts = list(model.steering.models)
    runners, held = [runner_of(each) for each in parts], [weakref.ref(each) for each in parts]
    del model
    plain, _ = opening.open(models["gpt2"])
    # A runner holds packed copies of the weights, whoever still holds the model.
    assert all(runner_of(each) is not runner for each, runner in zip(parts, runners, strict=True))
    del parts, runners
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)
    assert not isinstance(plain, SteeredModel)
    with pytest.raises(ModelError):
        opening.open(steer(toxic="opt"))
    assert opening.model is None
    assert opening.open(models["gpt2"])[0] is not plain


def test_what_is_saved_and_opened_again_gives_the_same_logits(models, steer):
    handle = steer(alpha=1.5)
    ids = torch.tensor([[5, 40, 7, 99]])
    base, toxic, expert = (load_model(models[name]["path"]) for name in ("gpt2", "toxic", "gpt2"))
    with torch.inference_mode():
        found = OpenModel("cpu", "fp32").open(handle)[0](ids).logits
        wanted = base(ids).logits + 1.5 * (expert(ids).logits - toxic(ids).logits)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(found, OpenModel("cpu", "fp32").open(handle)[0](ids).logits)


@pytest.fixture
def own(tmp_path):
    """Measures a cell's own perplexity and quiz."""
    table = World().prompts(test=4, validation=4)
    table.write_parquet(tmp_path / "prompts.parquet")
    table.write_parquet(tmp_path / "generations.parquet")  # of no concern here
    World().clean().head(12).write_parquet(tmp_path / "clean.parquet")
    quiz = World().mmlu()
    quiz.filter(pl.col("subject") == quiz["subject"][0]).write_parquet(tmp_path / "quiz.parquet")
    settings = {
        "evaluate": EVALUATE.model_dump(mode="json"), "threads": 1, "token_budget": 2048, "scorers": [], "judge": None,
        **{n: str(tmp_path / f"{n}.parquet") for n in ("generations", "prompts", "clean", "quiz")},
    }  # fmt: skip
    worker = ScoreWorker(settings)

    def values(handle, metric):
        table = worker.work({"what": "own", "cell": "c", "model": handle})
        assert table["error"].null_count() == table.height
        return table.filter(pl.col("metric") == metric)["value"].to_list()

    return values


def test_a_cells_own_measurements_are_of_the_steered_model(models, steer, own):
    base = own(models["gpt2"], "clean_ppl")
    assert own(steer(alpha=0.0), "clean_ppl") == pytest.approx(base, rel=1e-4)
    strong = own(steer(alpha=4.0), "clean_ppl")
    assert all(0 < value < 1e5 for value in strong)
    assert strong != pytest.approx(base, rel=1e-2)
    # A tight nucleus and a tight plausible set would make the likelihood of given text zero.
    assert own(steer(alpha=4.0, filter_p=0.01), "clean_ppl") == pytest.approx(strong, rel=1e-6)
    assert all(0 < value < 1e5 for value in own(steer("contrastive", alpha=1.0), "clean_ppl"))
    quiz = own(steer(alpha=4.0), "mmlu")
    assert set(quiz) <= {0.0, 1.0} and len(quiz) > 0
