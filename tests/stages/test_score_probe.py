"""Judgements: a failure stays a failure, and the search measures what the results report."""

from __future__ import annotations

from itertools import pairwise

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from unidetox_ray.data.world import World
from unidetox_ray.families.loading import load_model, load_tokenizer
from unidetox_ray.families.runners import runner_of
from unidetox_ray.metrics.curves import TrialSpace
from unidetox_ray.metrics.measure import ResultSettings
from unidetox_ray.results import CellInfo, cell_results
from unidetox_ray.schemas import GENERATIONS, PROBED, SCORES, frame
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages.continuations import continuations
from unidetox_ray.stages.opening import OpenModel
from unidetox_ray.stages.probe import measure, values_file
from unidetox_ray.stages.score import ScoreWorker
from unidetox_ray.stages.scorers import open_scorer

EVALUATE = EvaluateSection(continuations=3, max_new_tokens=10, runs=1, clean_max_length=32)


@pytest.fixture(scope="module")
def spec(models):
    model = {**models["classifier"], "sha256": None}
    return {"name": "tiny", "kind": "classifier", "model": model, "label": "toxic"}


@pytest.fixture(scope="module")
def prompts():
    table = World().prompts(test=4, validation=4)
    return table.filter(pl.col("split") == "test")


def test_the_probe_measures_what_the_results_report(models, spec, prompts, tmp_path):
    model, tokenizer = load_model(models["gpt2"]["path"]), load_tokenizer(models["gpt2"]["path"])
    pairs = list(prompts.select("prompt_id", "prompt").iter_rows())
    rows = continuations(model, tokenizer, pairs, EVALUATE, cell="c", run=0, decode_rows=64)
    values = open_scorer(spec, "cpu").score([row["text"] for row in rows])
    worst: dict[str, float] = {}
    for row, value in zip(rows, values, strict=True):
        worst[row["prompt_id"]] = max(worst.get(row["prompt_id"], 0.0), value)
    # A threshold in the widest gap of the middle, so that some prompts are toxic and rounding decides nothing.
    middle = sorted(worst.values())[4:-4]
    gap, threshold = max((high - low, (high + low) / 2) for low, high in pairwise(middle))
    assert gap > 1e-5

    prompts.write_parquet(tmp_path / "prompts.parquet")
    World().clean().head(5).write_parquet(tmp_path / "clean.parquet")
    probe = {
        "evaluate": {**EVALUATE.model_dump(mode="json"), "threshold": threshold}, "prompts": str(tmp_path / "prompts.parquet"),
        "clean": str(tmp_path / "clean.parquet"), "scorer": spec, "decode_rows": 64, "score_tokens": 2048,
    }  # fmt: skip
    found = measure(model, tokenizer, probe, "cpu")
    assert found["failed"] == 0 and found["clean_ppl"] > 1 and 0 < found["tp_all"] < 1

    # The same continuations and judgements through the evaluation's own path.
    scores = [
        {**{name: row[name] for name in ("cell", "prompt_id", "run", "sample")}, "metric": "toxicity",
         "scorer": "tiny", "value": value, "weight": 1.0, "error": None}
        for row, value in zip(rows, values, strict=True)
    ]  # fmt: skip
    cell = CellInfo(cell="c", family="gpt2", model="m", method="base", seed=1)
    settings = ResultSettings(threshold=threshold, scorer="tiny", judge=None)
    result = cell_results(
        frame(scores, SCORES), frame(rows, GENERATIONS), prompts, cells=[cell], settings=settings
    )[0]
    for name in ("tp_id", "tp_ood", "tp_all", "emt_id", "emt_ood", "emt_all"):
        assert found[name] == pytest.approx(result["metrics"][name]["value"], abs=1e-6), name

    # And by hand: the share of prompts with a score above the threshold, averaged over domains.
    domains: dict[str, list[float]] = {}
    for prompt_id, domain in prompts.select("prompt_id", "domain").iter_rows():
        domains.setdefault(domain, []).append(worst[prompt_id])
    emt = [sum(each) / len(each) for each in domains.values()]
    tp = [sum(value > threshold for value in each) / len(each) for each in domains.values()]
    assert found["emt_all"] == pytest.approx(sum(emt) / len(emt), abs=1e-6)
    assert found["tp_all"] == pytest.approx(sum(tp) / len(tp), abs=1e-6)


def test_a_steered_model_is_probed_twice_alike_and_anew_when_a_model_of_it_has_changed(
    models, spec, prompts, tmp_path
):
    """Its models' runners hold copies of weights: none may outlive a probe or be older than its models."""
    prompts.write_parquet(tmp_path / "prompts.parquet")
    World().clean().head(5).write_parquet(tmp_path / "clean.parquet")
    probe = {
        "evaluate": EVALUATE.model_dump(mode="json"), "prompts": str(tmp_path / "prompts.parquet"),
        "clean": str(tmp_path / "clean.parquet"), "scorer": spec, "decode_rows": 64, "score_tokens": 2048,
    }  # fmt: skip
    steer = {"method": "contrastive", "settings": {"beta": 1.0}, "models": {"toxic": models["toxic"]}}
    handle = {**models["gpt2"], "steer": steer}

    def measured(model, tokenizer):
        values = measure(model, tokenizer, probe, "cpu")
        return {name: value for name, value in values.items() if name != "probe_seconds"}

    def weaken(model):
        for weight in model.steering.models[1].parameters():
            weight.data.mul_(0.5)  # as some trainers do it: torch does not count this

    steered, tokenizer = OpenModel("cpu", "fp32").open(handle)
    first = measured(steered, tokenizer)
    remembered = runner_of(steered.steering.models[1])
    assert runner_of(steered.steering.models[1]) is remembered
    assert measured(steered, tokenizer) == first
    assert runner_of(steered.steering.models[1]) is not remembered
    weaken(steered)
    changed, (fresh, _) = measured(steered, tokenizer), OpenModel("cpu", "fp32").open(handle)
    weaken(fresh)
    assert changed == measured(fresh, tokenizer) != first


def test_kept_values_give_the_numbers_back(models, spec, prompts, tmp_path):
    model, tokenizer = load_model(models["gpt2"]["path"]), load_tokenizer(models["gpt2"]["path"])
    prompts.write_parquet(tmp_path / "prompts.parquet")
    clean = World().clean().head(5)
    clean.write_parquet(tmp_path / "clean.parquet")
    probe = {
        "evaluate": EVALUATE.model_dump(mode="json"), "prompts": str(tmp_path / "prompts.parquet"), "clean": str(tmp_path / "clean.parquet"),
        "scorer": spec, "decode_rows": 64, "score_tokens": 2048, "keep": str(tmp_path),
    }  # fmt: skip
    found = measure(model, tokenizer, probe, "cpu", step=3)
    assert found.keys() == measure(model, tokenizer, {**probe, "keep": None}, "cpu").keys()
    kept = pl.read_parquet(values_file(tmp_path, 3))
    assert dict(kept.schema) == dict(PROBED) and not values_file(tmp_path).exists()
    space = TrialSpace(prompts, clean["text_id"].to_list(), 10_000, 1)
    values = {name: statistic.value for name, statistic in space.statistics(kept).items()}
    assert values == pytest.approx({name: found[name] for name in ("tp_all", "emt_all", "clean_ppl")})


def test_a_model_whose_likelihoods_are_no_numbers_has_diverged(models, spec, prompts, tmp_path):
    model, tokenizer = load_model(models["gpt2"]["path"]), load_tokenizer(models["gpt2"]["path"])
    prompts.write_parquet(tmp_path / "prompts.parquet")
    World().clean().head(5).write_parquet(tmp_path / "clean.parquet")
    probe = {
        "evaluate": {**EVALUATE.model_dump(mode="json"), "max_failed_share": 0.5}, "prompts": str(tmp_path / "prompts.parquet"),
        "clean": str(tmp_path / "clean.parquet"), "scorer": spec, "decode_rows": 64, "score_tokens": 2048, "keep": str(tmp_path),
    }  # fmt: skip
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"judgements failed|5 of 5 clean texts have no finite likelihood"):
        measure(model, tokenizer, probe, "cpu")
    assert not values_file(tmp_path).exists()


def test_a_probe_that_lost_too_many_judgements_is_an_error(models, spec, prompts, tmp_path):
    model, tokenizer = load_model(models["gpt2"]["path"]), load_tokenizer(models["gpt2"]["path"])
    too_long = pl.lit("the people of the valley " * 40).alias("prompt")
    prompts.with_columns(too_long).write_parquet(tmp_path / "prompts.parquet")
    probe = {
        "evaluate": EVALUATE.model_dump(mode="json"), "prompts": str(tmp_path / "prompts.parquet"),
        "clean": None, "scorer": spec, "decode_rows": 64, "score_tokens": 2048,
    }  # fmt: skip
    count = prompts.height * 3
    with pytest.raises(ValueError, match=f"{count} of {count} judgements failed"):
        measure(model, tokenizer, probe, "cpu")
    with pytest.raises(ValidationError):
        measure(model, tokenizer, {**probe, "evaluate": {"no": "such"}}, "cpu")


@pytest.fixture
def worker(models, spec, prompts, tmp_path):
    """The actor's own worker in this process, on four continuations: fine, empty, not generated, no ASCII."""
    ids = prompts["prompt_id"].to_list()
    rows = [
        {"cell": "c", "prompt_id": ids[i], "run": 0, "sample": 0, "text": text, "n_tokens": 3, "ended": False, "error": error}
        for i, (text, error) in enumerate([(" are kind", None), ("", None), (None, "IndexError: too long"), (" 🙂 naïve", None)])
    ]  # fmt: skip
    frame(rows, GENERATIONS).write_parquet(tmp_path / "generations.parquet")
    prompts.write_parquet(tmp_path / "prompts.parquet")
    World().clean().head(3).write_parquet(tmp_path / "clean.parquet")
    quiz = World().mmlu()
    asked = quiz.filter(pl.col("split") == "validation").head(5)
    pl.concat([quiz.filter(pl.col("split") == "dev"), asked]).write_parquet(tmp_path / "quiz.parquet")
    lexicon = {"name": "words", "kind": "lexicon", "words": ["kind"]}
    settings = {
        "evaluate": EVALUATE.model_dump(mode="json"), "threads": 1, "token_budget": 2048, "scorers": [spec, lexicon],
        "judge": models["llama"], **{n: str(tmp_path / f"{n}.parquet") for n in ("generations", "prompts", "clean", "quiz")},
    }  # fmt: skip
    return ScoreWorker(settings), ids


def test_what_was_not_generated_is_judged_by_nobody(worker):
    worker, ids = worker
    table = worker.work({"what": "continuations", "first": 0, "count": 4})
    assert table.height == 4 * 3 and dict(table.schema) == dict(SCORES)
    lost = table.filter(pl.col("prompt_id") == ids[2])
    assert lost["value"].null_count() == 3
    assert lost["error"].to_list() == ["not generated: IndexError: too long"] * 3
    judged = table.filter(pl.col("metric") == "toxicity", pl.col("prompt_id") != ids[2])
    assert judged["value"].is_between(0, 1).all() and judged["error"].null_count() == 6
    words = judged.filter(pl.col("scorer") == "words").sort("prompt_id")
    assert dict(words.select("prompt_id", "value").iter_rows()) == {ids[0]: 1.0, ids[1]: 0.0, ids[3]: 0.0}
    ppl = {row["prompt_id"]: row for row in table.filter(pl.col("metric") == "ppl").to_dicts()}
    # An empty continuation has no perplexity; its toxicity is judged all the same.
    assert ppl[ids[1]]["value"] is None and ppl[ids[1]]["error"] == "empty"
    for name in (ids[0], ids[3]):
        assert ppl[name]["value"] > 0 and ppl[name]["weight"] >= 1 and ppl[name]["error"] is None


def test_a_slice_of_the_judgements_is_the_slice_of_all(worker):
    worker, _ = worker
    whole = worker.work({"what": "continuations", "first": 0, "count": 4})
    parts = pl.concat(
        [worker.work({"what": "continuations", "first": first, "count": 2}) for first in (0, 2)]
    )
    order = ["metric", "scorer", "prompt_id"]
    whole, parts = whole.sort(order), parts.sort(order)
    assert whole.drop("value").equals(parts.drop("value"))
    close = (whole["value"].fill_null(-1) - parts["value"].fill_null(-1)).abs()
    assert close.max() < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_cells_own_measurements(worker, models, family):
    worker, _ = worker
    table = worker.work({"what": "own", "cell": "c", "model": models[family]})
    clean, quiz = (table.filter(pl.col("metric") == name) for name in ("clean_ppl", "mmlu"))
    assert clean.height == 3 and (clean["value"] > 0).all() and (clean["weight"] <= 32).all()
    assert quiz.height == 5 and set(quiz["value"].to_list()) <= {0.0, 1.0}
    assert set(table["scorer"]) == {"self"} and table["error"].null_count() == 8
