"""Tuned methods of three kinds through the whole pipeline, on two small families: trials, choices, cells, report, tracking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_pipeline import experiment_file, tag, tracked

from unidetox_ray import pipeline
from unidetox_ray.config import load
from unidetox_ray.dryrun import describe

pytestmark = [pytest.mark.ray, pytest.mark.long]

METHODS = [
    "base",
    {"method": "dexperts", "tune": {"alpha": [0.5, 2]}},
    {"method": "task_arithmetic", "tune": {"strength": [0.5, 1]}},
    {"method": "unidetox", "tune": {"steps": [2, 4], "lr": [1e-3]}},
]
EVALUATE = {
    "continuations": 2, "max_new_tokens": 6, "runs": 1, "ppl_model": None, "clean_max_length": 32,
    "scorers": [{"name": "words", "kind": "lexicon", "source": "world"}],
}  # fmt: skip
NAMES = [f"{family}-base" for family in ("gpt2", "opt")] + [
    f"{family}-{label}-{point}"
    for label, points in (
        ("dexperts", ("alpha=0.5", "alpha=2")),
        ("task_arithmetic", ("strength=0.5", "strength=1")),
        ("unidetox", ("steps=2,lr=0.001", "steps=4,lr=0.001")),
    )
    for family in ("gpt2", "opt")
    for point in points
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def first(root):
    tuning = {"continuations": 2, "prompts_per_domain": 2, "max_clean_ppl": 100}
    path = experiment_file(root, name="tuned", methods=METHODS, search=None, evaluate=EVALUATE, tuning=tuning)
    return path, pipeline.run(load(path))


def trials(result) -> dict[str, dict]:
    stored = json.loads((result.folder / "tuning.json").read_text())
    parts = [part for entry in stored["entries"].values() for part in entry["families"].values()]
    return {
        row["trial"]: row
        for row in [*stored["bases"].values(), *(row for part in parts for row in part["trials"])]
    }


def test_every_trial_is_measured(first):
    _, result = first
    found = trials(result)
    assert sorted(found) == sorted(NAMES)
    for row in found.values():
        assert row["status"] == "ok" and row["seconds"] > 0 and row["ratio"] > 0, row
        assert row["tp_all_low"] <= row["tp_all"] <= row["tp_all_high"]
        assert row["clean_ppl_low"] < row["clean_ppl"] < row["clean_ppl_high"]


def test_each_entry_has_its_choice_and_each_dial_its_curve(first):
    _, result = first
    stored = json.loads((result.folder / "tuning.json").read_text())
    for label, entry in stored["entries"].items():
        assert entry["universal"]["chosen"] == entry["families"]["gpt2"]["chosen"] is not None
        for part in entry["families"].values():
            allowed = [row for row in part["trials"] if row["ratio"] <= 100]
            best = min(row["tp_all"] for row in allowed)
            picked = next(row for row in part["trials"] if row["settings"] == part["chosen"])
            assert picked["tp_all"] == pytest.approx(best)
            assert len(part["curves"]) == (label != "unidetox")
            for curve in part["curves"]:
                assert curve["points"][0]["trial"].endswith("-base") and curve["points"][0]["strength"] == 0
                assert {"holds", "change", "against"} == set(curve["toxicity"]) == set(curve["perplexity"])


def test_cells_have_the_chosen_settings(first):
    _, result = first
    stored = json.loads((result.folder / "tuning.json").read_text())["entries"]
    rows = {row["cell"]: row for row in result.rows}
    assert {row["status"] for row in result.rows} == {"ok"} and result.exit_code == 0
    expected = []
    for family in ("gpt2", "opt"):
        expected.append(f"{family}-base-s5")
        for label, entry in stored.items():
            sides = {"": entry["universal"]["chosen"]}
            if entry["families"][family]["chosen"] != entry["universal"]["chosen"]:
                sides["@own"] = entry["families"][family]["chosen"]
            for side, point in sides.items():
                name = f"{family}-{label}{side}-s5"
                expected.append(name)
                settings = rows[name]["settings"]
                assert {setting: settings[setting] for setting in point} == point
                assert settings["tuned"] == ("own" if side else "universal")
    assert sorted(rows) == sorted(expected) and "tuned" not in rows["gpt2-base-s5"]["settings"]


def test_the_report_shows_both_columns(first):
    _, result = first
    text = (result.folder / "report.md").read_text()
    assert "## Tuning" in text and "universal: setting" in text and "own: setting" in text
    assert "dexperts: the dial alpha" in text and text.count("Universal setting: ") == 3


def test_tracking_has_a_run_for_every_trial(first, root):
    assert first
    _, runs = tracked(root, "tuned")
    assert {run.info.status for run in runs} == {"FINISHED"}
    found = [run for run in runs if tag(run, "kind") == "trial"]
    assert sorted(run.info.run_name for run in found) == sorted(NAMES)
    (above,) = [run for run in runs if tag(run, "kind") == "search"]
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {above.info.run_id}
    assert all({"tp_all", "clean_ppl", "ratio"} <= set(run.data.metrics) for run in found)


def test_the_plan_names_the_trials(first):
    path, _ = first
    text = describe(load(path))
    assert "tune      dexperts: alpha=0.5 alpha=2 on gpt2, opt: 2 x 2 trials" in text
    assert "unidetox: steps=2,lr=0.001 steps=4,lr=0.001 on gpt2, opt: 2 x 2 trials, 2 trainings" in text
    assert (
        "steer     dexperts: alpha tuned, filter_p 0.9" in text
        and "@own, for a family other than gpt2" in text
    )


def test_again_reuses_everything(first):
    path, _ = first
    again = pipeline.run(load(path))
    assert [stage["stage"] for stage in again.stages if not stage["reused"]] == [] and again.exit_code == 0


def test_without_the_grids_nothing_of_the_tuning_is_shown(first):
    path, result = first
    plain = json.loads(path.read_text()) | {"methods": ["base", "task_arithmetic"]}
    path.with_name("plain.yaml").write_text(json.dumps(plain))
    assert pipeline.run(load(path.with_name("plain.yaml"))).exit_code == 0
    assert not (result.folder / "tuning.json").exists()
    assert "## Tuning" not in (result.folder / "report.md").read_text()
