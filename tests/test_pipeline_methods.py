"""Methods of every kind side by side through the whole pipeline, on two small families of the embedded world."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from test_pipeline import experiment_file, tag, tracked, with_a_broken_one

from unidetox_ray import pipeline
from unidetox_ray.config import load
from unidetox_ray.families.loading import load_model

pytestmark = [pytest.mark.ray, pytest.mark.long]

METHODS = ["base", "clean_text", "task_arithmetic", {"method": "task_arithmetic", "label": "neutral", "settings": {"strength": 0}}, "dexperts"]  # fmt: skip
LABELS = ("base", "clean_text", "task_arithmetic", "neutral", "dexperts")
EVALUATE = {
    "continuations": 2, "max_new_tokens": 6, "runs": 1, "ppl_model": None, "clean_max_length": 32,
    "scorers": [{"name": "words", "kind": "lexicon", "source": "world"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def first(root):
    path = experiment_file(root, name="kinds", methods=METHODS, search=None, evaluate=EVALUATE)
    return path, pipeline.run(load(path))


def model_folder(result, name: str) -> Path:
    (folder,) = (result.folder / "models").glob(f"{name}-*")
    return folder


def test_every_cell_of_every_kind_is_ok(first):
    _, result = first
    rows = {row["cell"]: row for row in result.rows}
    assert list(rows) == [f"{family}-{label}-s5" for family in ("gpt2", "opt") for label in LABELS]
    assert {name: row["error"] for name, row in rows.items() if row["status"] != "ok"} == {}
    for row in rows.values():
        assert {"tp_all", "emt_all", "clean_ppl", "mmlu"} <= set(row["metrics"])
        assert ("train_seconds" in row["costs"]) is (row["method"] == "clean_text")
        assert ("edit_seconds" in row["costs"]) is (row["method"] in ("task_arithmetic", "neutral"))
    assert rows["gpt2-task_arithmetic-s5"]["settings"]["strength"] == 1.0


def test_what_methods_need_is_made_once_per_family(first):
    _, result = first
    names = sorted(folder.name.rpartition("-")[0] for folder in (result.folder / "models").iterdir())
    copies = [f"{need}-{family}" for need in ("toxic", "expert") for family in ("gpt2", "opt")]
    assert names == sorted(
        copies + [f"{family}-{label}-s5" for label in LABELS[1:4] for family in ("gpt2", "opt")]
    )
    assert "Do not deploy" in (model_folder(result, "toxic-opt") / "README.md").read_text()
    assert "Do not deploy" not in (model_folder(result, "expert-opt") / "README.md").read_text()


def test_strength_0_is_the_base_model_in_weights_and_in_text(first):
    _, result = first
    generations = pl.read_parquet(result.folder / "generations.parquet")
    text = {
        cell: part["text"].to_list() for (cell,), part in generations.group_by("cell", maintain_order=True)
    }
    for family in ("gpt2", "opt"):
        assert text[f"{family}-neutral-s5"] == text[f"{family}-base-s5"]
        assert text[f"{family}-task_arithmetic-s5"] != text[f"{family}-base-s5"]
        edited = model_folder(result, f"{family}-task_arithmetic-s5")
        assert load_model(str(edited)).config.model_type == family
        facts = json.loads((edited / "settings.json").read_text())
        assert facts["step_norm"] == pytest.approx(facts["toxic_norm"], rel=1e-4) and facts["toxic_norm"] > 0


def test_the_control_has_the_corpus_it_was_asked_for(first):
    _, result = first
    table = pl.read_parquet(result.folder / "corpora" / "clean_text.parquet")
    assert table.height == 8 and set(table["n_tokens"]) == {15}


def test_tracking_holds_every_copy_and_cell(first, root):
    _, runs = tracked(root, "kinds")
    assert {run.info.status for run in runs} == {"FINISHED"}
    kinds: dict[str, list[str]] = {}
    for run in runs:
        kinds.setdefault(tag(run, "kind"), []).append(run.info.run_name)
    assert sorted(kinds["toxic"]) == ["expert-gpt2", "expert-opt", "toxic-gpt2", "toxic-opt"]
    assert len(kinds["cell"]) == 10 and kinds["corpus"] == ["corpus clean_text"]
    edited = [run for run in runs if run.info.run_name == "opt-task_arithmetic-s5"]
    assert edited[0].data.metrics["edit/step_norm"] > 0


def test_again_reuses_everything(first):
    path, _ = first
    again = pipeline.run(load(path))
    assert [stage["stage"] for stage in again.stages if not stage["reused"]] == [] and again.exit_code == 0


def test_a_family_whose_toxic_model_cannot_be_made_fails_alone(first, root):
    assert first
    path = experiment_file(
        root, name="broken", models=with_a_broken_one(root), search=None,
        methods=["base", "task_arithmetic", "contrastive"], evaluate=EVALUATE,
    )  # fmt: skip
    broken = pipeline.run(load(path))
    assert broken.exit_code == 3
    rows = {row["cell"]: row for row in broken.rows}
    assert {name: row["status"] for name, row in rows.items()} == {
        f"{family}-{label}-s5": status
        for family, status in (("gpt2", "ok"), ("opt", "failed"))
        for label in ("base", "task_arithmetic", "contrastive")
    }
    for label in ("task_arithmetic", "contrastive"):
        error = rows[f"opt-{label}-s5"]["error"]
        assert error.startswith("toxic: toxic-opt: ") and "\n" not in error
