"""Tuning through a real Ray Tune run: what is measured, what fails alone, what is not measured again, and which cells follow."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest

from unidetox_ray.artifacts import write_manifest
from unidetox_ray.errors import StageError
from unidetox_ray.stages import tune
from unidetox_ray.stages.cells import cells_of, tuned_pairs
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.finetune import training_of
from unidetox_ray.stages.opening import OpenModel
from unidetox_ray.stages.trials import measure_trial
from unidetox_ray.stages.tune_plan import plan

GRIDS = [
    "base",
    {"method": "contrastive", "tune": {"beta": [0, 1, "inf"]}},
    {"method": "task_arithmetic", "tune": {"strength": [0, 1, 1e30]}},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def prepare(root, models, context_at):
    """(grids, more) -> the arguments of `tune.run`. OPT has no toxic model."""
    copies = Copies(models={("toxic", "gpt2"): models["toxic"]})
    scorers = {"tiny": {**models["classifier"], "label": "toxic", "sha256": None}}
    scorer = {"name": "tiny", "source": str(models.root / "classifier")}
    bases = {family: models[family] for family in ("gpt2", "opt")}

    def make(methods, **more):
        values = {
            "families": ["gpt2", "opt"],
            "tuning": {"continuations": 2, "prompts_per_domain": 2},
            **more,
        }
        context = context_at(
            root, models=models, limit=8, methods=methods, **values,
            evaluate={"max_new_tokens": 6, "clean_max_length": 32, "scorers": [scorer]},
        )  # fmt: skip
        return context, bases, {}, copies, scorers

    return make


@pytest.fixture(scope="module")
def first(ray_session, prepare):
    arguments = prepare(GRIDS)
    return arguments[0], tune.run(*arguments)


def rows(tuned, label, family) -> dict:
    return {row["trial"]: row for row in tuned.values["entries"][label]["families"][family]["trials"]}


def measured_at(root: Path) -> dict[str, int]:
    """When each finished trial was measured."""
    return {path.parent.name: path.stat().st_mtime_ns for path in root.rglob("trials-*/*/manifest.json")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_dial_at_its_neutral_strength_measures_the_base_model(first):
    _, tuned = first
    base = tuned.values["bases"]["gpt2"]
    assert base["status"] == "ok" and base["ratio"] == 1.0 and base["clean_ppl"] > 1
    for label, name in (("contrastive", "beta"), ("task_arithmetic", "strength")):
        found = rows(tuned, label, "gpt2")
        neutral = found[f"gpt2-{label}-{name}=0"]
        assert {key: neutral[key] for key in ("tp_all", "emt_all", "clean_ppl")} == {key: base[key] for key in ("tp_all", "emt_all", "clean_ppl")}  # fmt: skip
        other = found[f"gpt2-{label}-{name}=1"]
        assert other["status"] == "ok" and other["clean_ppl"] != base["clean_ppl"] and other["seconds"] > 0
        assert other["tp_all_low"] <= other["tp_all"] <= other["tp_all_high"]
        (curve,) = tuned.values["entries"][label]["families"]["gpt2"]["curves"]
        assert curve["points"][0] == {"strength": 0.0, "trial": neutral["trial"]}


@pytest.mark.ray
@pytest.mark.slow
def test_what_cannot_be_made_or_diverges_fails_alone_and_is_no_number(first):
    _, tuned = first
    broken = rows(tuned, "task_arithmetic", "gpt2")["gpt2-task_arithmetic-strength=1e+30"]
    assert broken["status"] == "failed" and broken["error"] and "\n" not in broken["error"]
    assert "tp_all" not in broken and broken["ratio"] is None and broken["seconds"] is None
    for label in ("contrastive", "task_arithmetic"):
        for row in rows(tuned, label, "opt").values():
            assert (row["status"], row["error"]) == (
                "failed",
                "needs the toxic model of opt, which was not made",
            )
    assert tuned.values["bases"]["opt"]["status"] == "ok"
    assert tuned.manifest.counts == {"expected": 14, "ok": 7, "failed": 7}


@pytest.mark.ray
@pytest.mark.slow
def test_choices_become_cells(first):
    context, tuned = first
    experiment = context.experiment
    cells = {cell.name: cell for cell in cells_of(experiment, first[0] and {f: {"path": f} for f in ("gpt2", "opt")}, tuned.choices)}  # fmt: skip
    assert list(cells) == [
        "gpt2-base-s1234", "gpt2-contrastive-s1234", "gpt2-task_arithmetic-s1234", "opt-base-s1234",
        "opt-contrastive-s1234", "opt-contrastive@own-s1234", "opt-task_arithmetic-s1234", "opt-task_arithmetic@own-s1234",
    ]  # fmt: skip
    universal = cells["opt-contrastive-s1234"]
    assert universal.tuned == "universal" and universal.error is None
    assert universal.method.settings == tuned.values["entries"]["contrastive"]["universal"]["chosen"]
    own = cells["opt-contrastive@own-s1234"]
    assert own.tuned == "own" and own.entry == "contrastive"
    assert (
        own.error
        == "tuning: all 3 trials failed; first error: needs the toxic model of opt, which was not made"
    )
    assert cells["gpt2-base-s1234"].tuned is None


@pytest.mark.ray
@pytest.mark.slow
def test_edited_models_are_gone_and_values_of_prompts_are_kept(first, root):
    assert first
    assert not list(root.rglob("*.safetensors"))
    kept = list(root.rglob("trials-*/*/values.parquet"))
    assert len(kept) == len(measured_at(root)) == 7


@pytest.mark.ray
@pytest.mark.slow
def test_a_larger_grid_measures_only_what_is_new(first, prepare, root):
    _, tuned = first
    before = measured_at(root)
    grids = [GRIDS[0], {"method": "contrastive", "tune": {"beta": [0, 0.5, 1, "inf"]}}]
    again = tune.run(*prepare(grids, families=["gpt2"]))
    after = measured_at(root)
    assert {name: when for name, when in after.items() if name in before} == before
    assert [name.rpartition("-")[0] for name in after.keys() - before.keys()] == ["gpt2-contrastive-beta=0.5"]
    old, new = rows(tuned, "contrastive", "gpt2"), rows(again, "contrastive", "gpt2")
    assert {name: row for name, row in new.items() if name in old} == old

    # Nothing failed here, so the next run reads the outcome; without it, it is made again from the trials alone.
    arguments = prepare(grids, families=["gpt2"])
    assert tune.run(*arguments).values == again.values and arguments[0].stages[-1]["reused"]
    (arguments[0].folder.stage("tune", again.manifest.key) / "manifest.json").unlink()
    assert tune.run(*prepare(grids, families=["gpt2"])).values == again.values and measured_at(root) == after


def test_fits_are_a_stage_of_their_own_and_their_time_counts_once(ray_session, prepare):
    steer = {
        "method": "lm_steer",
        "settings": {"steps": 2, "batch_size": 2, "rank": 2},
        "tune": {"strength": [1]},
    }
    arguments = prepare(["base", steer], families=["gpt2"])
    stages, started = arguments[0].stages, time.perf_counter()
    tune.run(*arguments)
    whole = time.perf_counter() - started
    assert [row["stage"] for row in stages] == ["fits", "tune"] and not any(row["reused"] for row in stages)
    assert stages[0]["seconds"] > 0.5 and 0.8 * whole < sum(row["seconds"] for row in stages) <= whole


def test_choices_by_what_is_reused(context_at, tmp_path):
    def made(reuse, own):
        methods = ["base", {"method": "contrastive", "tune": {"beta": [1, 2]}}]
        context = context_at(tmp_path, methods=methods, families=["gpt2", "opt"], tuning={"reuse": reuse})
        part = {"chosen": {"beta": 1}, "reason": "r"}
        entry = {"universal": part, "families": {"gpt2": part, "opt": {"chosen": own, "reason": "why"}}}
        return {
            family: [(each.label, each.how, each.point, each.error) for each in found]
            for (_, family), found in tune.choices(context.experiment, {"entries": {"contrastive": entry}}).items()
        }  # fmt: skip

    universal = ("contrastive", "universal", {"beta": 1}, None)
    assert made("universal", {"beta": 2}) == {"gpt2": [universal], "opt": [universal]}
    assert made("both", {"beta": 1}) == {"gpt2": [universal], "opt": [universal]}
    assert made("both", {"beta": 2})["opt"] == [universal, ("contrastive@own", "own", {"beta": 2}, None)]
    assert made("both", None)["opt"] == [universal, ("contrastive@own", "own", None, "tuning: why")]
    assert made("per_model", {"beta": 2})["opt"] == [("contrastive", "own", {"beta": 2}, None)]


def test_tuned_steps_and_rate_take_the_place_of_the_searched_ones(context_at, tmp_path):
    methods = ["base", {"method": "unidetox", "tune": {"steps": [3, 5]}}]
    experiment = context_at(tmp_path, methods=methods, seeds=[1, 2]).experiment
    choices = {("unidetox", "gpt2"): [tune.Tuned("unidetox", "universal", {"steps": 5}), tune.Tuned("unidetox@own", "own", {"steps": 3})]}  # fmt: skip
    cells = cells_of(experiment, {"gpt2": {}}, choices)
    trained = {
        cell.name: training_of(cell, experiment.finetune).steps for cell in cells if cell.kind == "corpus"
    }
    assert trained == {
        "gpt2-unidetox-s1": 5, "gpt2-unidetox-s2": 5, "gpt2-unidetox@own-s1": 3, "gpt2-unidetox@own-s2": 3,
    }  # fmt: skip
    for cell in cells:
        cell.model = {} if cell.name != "gpt2-unidetox-s2" else None
    assert tuned_pairs(cells) == [("gpt2-unidetox@own-s1", "gpt2-unidetox-s1")]


def test_without_validation_prompts_or_grids(context_at, tmp_path, monkeypatch):
    context = context_at(tmp_path, methods=["base"])
    assert tune.run(context, {}, {}, Copies(), {}) is None
    context = context_at(tmp_path, methods=["base", {"method": "contrastive", "tune": {"beta": [1]}}])
    table = context.prompts("test")
    context.use_prompts(table, "0" * 64)
    with pytest.raises(StageError, match="has no validation row"):
        tune.run(context, {}, {}, Copies(), {})


def test_a_trial_that_diverges_leaves_no_result(models, tmp_path):
    trial = {
        "name": "t", "key": "k", "folder": str(tmp_path / "t"), "model": models["gpt2"], "edit": None, "config": {}, "inputs": {},
        "probe": {"evaluate": {"no": "such"}, "prompts": "", "clean": None},
    }  # fmt: skip
    with pytest.raises(ValueError, match="EvaluateSection"):
        measure_trial(trial, OpenModel("cpu", "fp32"), "cpu")
    assert not (tmp_path / "t" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("grid", "changes", "expected"),
    [
        ({"steps": [4, 2], "lr": [1e-3, 1e-2]}, [], [(1e-3, 4, [2, 4]), (1e-2, 4, [2, 4])]),
        ({"lr": [1e-3]}, ["finetune.steps=7"], [(1e-3, 7, [7])]),
        ({"steps": [3]}, ["finetune.lr=2e-4"], [(2e-4, 3, [3])]),
        # Passes over the corpus give way to tuned steps, and are the steps where the rate alone is tuned.
        ({"steps": [3]}, ["finetune.epochs=2", "finetune.lr=2e-4"], [(2e-4, 3, [3])]),
        ({"lr": [1e-3]}, ["finetune.epochs=2", "finetune.batch_size=5"], [(1e-3, 10, [10])]),
    ],
    ids=["both", "rate alone", "steps alone", "steps for epochs", "rate with epochs"],
)
def test_a_training_per_rate_is_measured_at_every_step_count(
    context_at, models, tmp_path, grid, changes, expected
):
    context = context_at(
        tmp_path, *changes, models=models, methods=["base", {"method": "samples", "tune": grid}]
    )
    pl.DataFrame({"text": ["a b c"] * 24}).write_parquet(tmp_path / "corpus.parquet")
    made = write_manifest(
        tmp_path, stage="corpus", key="c", seconds=0.0, config={}, inputs={}, extra={"sha256": "0" * 64}
    )
    probe = {"evaluate": {}}
    trials = plan(context, {"gpt2": models["gpt2"]}, {"samples": (tmp_path, made)}, Copies(), probe, tmp_path)
    assert (trials[0].name, trials[0].job) == ("gpt2-base", None)
    jobs = list({trial.job.folder: trial.job for trial in trials[1:]}.values())
    assert [(job.loop["lr"], job.loop["steps"], job.probe["steps"]) for job in jobs] == expected
    assert {job.loop["schedule"] for job in jobs} == {"constant"}
    assert all(job.probe["keep"] == job.folder and job.key in job.folder for job in jobs)
    assert [trial.point for trial in trials[1:]] == [
        {name: {"steps": step, "lr": lr}[name] for name in grid}
        for lr, _, steps in expected
        for step in steps
    ]
