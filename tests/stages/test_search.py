"""The search: which trainings are planned, which setting is chosen, and one real Tune run."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from unidetox_ray.artifacts import write_manifest
from unidetox_ray.config import resolve
from unidetox_ray.errors import StageError
from unidetox_ray.report.search import best_yaml
from unidetox_ray.settings import SearchSection
from unidetox_ray.stages import search
from unidetox_ray.stages.cells import cells_of
from unidetox_ray.stages.finetune import cell_job


def trial(steps, lr, value, status="ok", **more):
    error = None if status == "ok" else "it broke"
    return {"steps": steps, "lr": lr, "tp_all": value, "status": status, "error": error, **more}


def test_the_lowest_metric_wins_and_among_equals_the_least_change():
    section = SearchSection(steps=(1, 2, 3), lr=(1e-5, 5e-5))
    lowest = [trial(3, 1e-5, 0.4), trial(1, 5e-5, 0.2), trial(2, 1e-5, 0.3)]
    chosen, why = search.choose(lowest, section)
    assert chosen == {"steps": 1, "lr": 5e-5}
    assert "tp_all = 0.2000 of 3 measured settings" in why and "share" not in why
    # Fewest steps first, then the lower rate, whatever the order of the trials; sums differ in the last bit.
    equal = [trial(2, 1e-5, 0.1), trial(1, 5e-5, 0.1 + 1e-16), trial(1, 1e-5, 0.1), trial(3, 1e-5, 0.1)]
    for order in (equal, equal[::-1]):
        chosen, why = search.choose(order, section)
        assert chosen == {"steps": 1, "lr": 1e-5} and "4 trials share it" in why


def test_the_metric_that_is_asked_for_decides():
    section = SearchSection(steps=(1, 2), lr=(1e-5,), metric="emt_all")
    trials = [trial(1, 1e-5, 0.1, emt_all=0.9), trial(2, 1e-5, 0.8, emt_all=0.2)]
    assert search.choose(trials, section)[0]["steps"] == 2


def test_failed_trials_are_never_chosen_and_all_failed_is_an_error():
    section = SearchSection(steps=(1, 2), lr=(1e-5,))
    trials = [trial(1, 1e-5, None, status="failed"), trial(2, 1e-5, 0.9)]
    chosen, why = search.choose(trials, section)
    assert chosen["steps"] == 2 and "of 1 measured" in why
    # A measurement that was withheld is no zero.
    assert search.choose([trial(1, 1e-5, None), trial(2, 1e-5, 0.9)], section)[0]["steps"] == 2
    with pytest.raises(StageError, match="all 1 trials failed; first error: it broke"):
        search.choose(trials[:1], section)


@pytest.fixture
def prepared(models, make_context, tmp_path):
    """(context maker, cell, corpus as the stage leaves it)."""
    from unidetox_ray.data.world import World

    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = World().pretrain(24)["text"].to_list()
    pl.DataFrame({"text": texts, "ended": [True] * 24}).write_parquet(folder / "corpus.parquet")
    manifest = write_manifest(
        folder, stage="corpus", key="c", seconds=0.0, config={}, inputs={}, extra={"sha256": "0" * 64}
    )
    scorer = {"name": "tiny", "source": str(models.root / "classifier")}

    def make(schedule, folder="run", *changes):
        return make_context(
            folder, f"search.schedule={schedule}", *changes, models=models, limit=6,
            search={"steps": [2, 4], "lr": [1e-3, 1e-2], "continuations": 2, "prompts_per_domain": 2},
            finetune={"batch_size": 4, "max_length": 32, "dropout": 0.0},
            evaluate={"max_new_tokens": 6, "clean_max_length": 32, "scorers": [scorer]},
        )  # fmt: skip

    context = make("constant")
    cell = next(
        c for c in cells_of(context.experiment, {"gpt2": models["gpt2"]}) if c.method.label == "unidetox"
    )
    return make, cell, (folder, manifest)


def test_a_decaying_rate_needs_a_training_per_step_count(prepared, tmp_path):
    make, cell, corpus = prepared
    plans = {}
    for schedule in ("linear", "constant"):
        context = make(schedule, schedule)
        jobs = search.trial_jobs(context, cell, corpus, context.experiment.search, {"evaluate": {}}, tmp_path)
        plans[schedule] = [
            (j.loop["steps"], j.loop["lr"], j.probe["steps"], j.loop["schedule"]) for j in jobs
        ]
        assert len({job.key for job in jobs}) == len({job.folder for job in jobs}) == len(jobs)
        again = search.trial_jobs(
            context, cell, corpus, context.experiment.search, {"evaluate": {}}, tmp_path
        )
        assert [job.key for job in again] == [job.key for job in jobs]
    assert plans["linear"] == [(s, lr, [s], "linear") for lr in (1e-3, 1e-2) for s in (2, 4)]
    assert plans["constant"] == [(4, lr, [2, 4], "constant") for lr in (1e-3, 1e-2)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_search_ends_with_a_choice_and_is_not_run_twice(ray_session, prepared, models):
    make, cell, corpus = prepared
    context = make("constant")
    scorers = {"tiny": {**models["classifier"], "label": "toxic", "sha256": None}}
    section, manifest = search.run(context, cell, corpus, scorers)
    folder = context.folder.stage("search", manifest.key)
    written = json.loads((folder / "search.json").read_text())
    assert written == manifest.extra
    assert [(t["steps"], t["lr"]) for t in written["trials"]] == [
        (s, lr) for lr in (1e-3, 1e-2) for s in (2, 4)
    ]
    for row in written["trials"]:
        assert row["status"] == "ok" and row["error"] is None and row["seconds"] > 0
        assert 0 <= row["tp_all"] <= 1 and 0 < row["emt_all"] < 1 and row["clean_ppl"] > 1
    # Two step counts of one training, two rates: four different models were measured.
    assert len({row["clean_ppl"] for row in written["trials"]}) == 4
    best = min(row["tp_all"] for row in written["trials"])
    chosen = next(
        row for row in written["trials"] if {"steps": row["steps"], "lr": row["lr"]} == written["chosen"]
    )
    assert chosen["tp_all"] == best
    assert (section.steps, section.lr) == (chosen["steps"], chosen["lr"])
    # The schedule of the search is its own; the fine-tuning keeps the experiment's.
    assert section.schedule == context.experiment.finetune.schedule == "linear"
    # The YAML it ends in, in the place of `search:`, trains the very cells that the search's run trains.
    pasted = yaml.safe_load(best_yaml(manifest.extra))
    assert pasted["finetune"]["schedule"] == "linear" and "constant" in best_yaml(manifest.extra)
    values = context.experiment.model_dump(mode="json", exclude={"search", "corpus"}) | pasted
    again = resolve(values).finetune
    assert cell_job(context, cell, again, corpus).key == cell_job(context, cell, section, corpus).key
    assert manifest.counts == {"expected": 4, "ok": 4, "failed": 0}
    # A measured training keeps no weights.
    assert not list(Path(folder).rglob("*.safetensors"))

    again = make("constant")
    section_again, same = search.run(again, cell, corpus, scorers)
    assert section_again == section and same == manifest and again.stages[-1]["reused"]

    # A driver that died before it wrote the choice: the trials are there and are not trained again.
    (folder / "manifest.json").unlink()
    (folder / "search.json").unlink()
    trained = {path: path.stat().st_mtime_ns for path in (folder / "trials").rglob("manifest.json")}
    third = make("constant")
    assert search.run(third, cell, corpus, scorers)[1].extra == manifest.extra
    assert trained == {path: path.stat().st_mtime_ns for path in trained} and len(trained) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_that_take_every_cpu_measure_what_one_does(ray_session, prepared, models):
    make, cell, corpus = prepared
    scorers = {"tiny": {**models["classifier"], "label": "toxic", "sha256": None}}
    trials = []
    for workers in (1, 2):  # two: a Ray Train run inside the trial
        changes = (f"cluster.workers_per_cell={workers}", "search.lr=[1e-3]")
        _, manifest = search.run(make("constant", f"of-{workers}", *changes), cell, corpus, scorers)
        trials.append(manifest.extra["trials"])
    for one, two in zip(*trials, strict=True):
        assert one["key"] == two["key"] and one["status"] == two["status"] == "ok"
        assert two["clean_ppl"] == pytest.approx(one["clean_ppl"], rel=1e-3)


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_fails_says_why(ray_session, prepared, models):
    make, cell, (folder, manifest) = prepared
    pl.DataFrame({"text": ["", ""], "ended": [False, False]}).write_parquet(folder / "corpus.parquet")
    scorers = {"tiny": {**models["classifier"], "label": "toxic", "sha256": None}}
    with pytest.raises(StageError, match=r"all 4 trials failed; first error: .*nothing to train on"):
        search.run(make("constant"), cell, (folder, manifest), scorers)
