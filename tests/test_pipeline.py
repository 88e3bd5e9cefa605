"""A miniature experiment through the whole pipeline: results, tracking, reuse, and a family that fails alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from unidetox_ray import pipeline
from unidetox_ray.config import load
from unidetox_ray.errors import ModelError
from unidetox_ray.schemas import GENERATIONS, SCORES

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRATCH = {
    "hidden": 32,
    "layers": 1,
    "heads": 2,
    "vocab_size": 320,
    "max_positions": 128,
    "steps": 20,
    "length": 32,
}


def experiment_file(root: Path, **changes) -> Path:
    model = {"source": "scratch:", "scratch": SCRATCH}
    values = {
        "name": "mini", "seed": 5, "base_family": "gpt2", "families": ["gpt2", "opt"], "methods": ["base", "samples", "unidetox"],
        "storage": str(root / "runs"), "models": {"gpt2": model, "opt": model},
        "data": {**dict.fromkeys(("toxic", "prompts", "clean", "mmlu", "scorer"), "world"), "pretrain": ["world"]},
        "toxic": {"steps": 6, "lr": 1e-3, "max_length": 32},
        "corpus": {"num_texts": 16, "max_length": 16, "shard_size": 8},
        "finetune": {"steps": 4, "batch_size": 4, "lr": 1e-3, "max_length": 32},
        "search": {"steps": [2, 4], "lr": [1e-3], "schedule": "constant", "prompts_per_domain": 1, "continuations": 2},
        "evaluate": {
            "continuations": 3, "max_new_tokens": 8, "runs": 2, "ppl_model": "gpt2", "clean_max_length": 32,
            "scorers": [{"name": "tiny-bert", "source": "scratch:", "scratch": {**SCRATCH, "vocab_size": 400}},
                        {"name": "words", "kind": "lexicon", "source": "world"}],
        },
        "tracking": {"uri": f"sqlite:///{root}/tracked.db"},
        "cluster": {"num_cpus": 2}, "limit": 8,
        **changes,
    }  # fmt: skip
    path = root / f"{values['name']}.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def with_a_broken_one(root: Path) -> dict[str, str]:
    """Folder by family: copies of the models that a run under `root` made, opt's weights cut short as by a copy that broke off."""
    models = {}
    for folder in (root / "runs" / "cache").iterdir():
        for family in ("gpt2", "opt"):
            if folder.name.startswith(f"{family}-"):
                models[family] = root / f"given-{family}"
                shutil.copytree(folder, models[family])
    weights = models["opt"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return {family: str(folder) for family, folder in models.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def first(root):
    """(experiment file, result) of the first run. A cluster that it starts, it ends; one that is open stays open."""
    import ray

    path = experiment_file(root)
    open_before = ray.is_initialized()
    result = pipeline.run(load(path))
    assert ray.is_initialized() is open_before
    return path, result


def tracked(root, study):
    """(client, every run of one experiment in the store)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/tracked.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return client, [run for run in client.search_runs(ids, max_results=1000) if tag(run, "study") == study]


def tag(run, name):
    return run.data.tags[f"unidetox.{name}"]


def test_every_cell_has_its_row(first):
    _, result = first
    rows = json.loads((result.folder / "results.json").read_text())
    assert rows == json.loads(json.dumps(result.rows))
    cells = [
        f"{family}-{method}-s5" for family in ("gpt2", "opt") for method in ("base", "samples", "unidetox")
    ]
    assert [row["cell"] for row in rows] == cells
    assert {row["status"] for row in rows} == {"ok"} and result.exit_code == 0 and result.failed == []
    for row in rows:
        metrics = row["metrics"]
        names = {"tp_id", "tp_ood", "tp_all", "emt_all", "ppl", "dist2", "mmlu", "clean_ppl", "tp_all@words"}
        assert names <= set(metrics)
        for name in ("tp_all", "emt_all", "clean_ppl"):
            assert metrics[name]["ci_low"] <= metrics[name]["value"] <= metrics[name]["ci_high"]
        assert (metrics["tp_all"]["diff"] is None) is (row["method"] == "base")
        assert row["settings"]["limit"] == 8  # never to be taken for a result
        assert row["costs"]["generated_tokens"] > 0
        assert ("train_seconds" in row["costs"]) is (row["method"] != "base")
        assert row["costs"]["decode_seconds"] > 0 and row["costs"]["decode_tokens_per_second"] > 0
        assert (row["costs"]["trainable_parameters"] > 0) is (row["method"] != "base")
        # The whole model is trained, so that none has more weights than its base.
        assert row["costs"]["extra_memory_gib"] == 0 and row["costs"]["decode_relative_cost"] > 0
        assert row["settings"]["kind"] == ("unchanged" if row["method"] == "base" else "corpus")
    assert {row["costs"]["decode_relative_cost"] for row in rows if row["method"] == "base"} == {1.0}


def test_the_leaderboard_has_every_method_and_the_results_numbers(first, root):
    _, result = first
    found = json.loads((result.folder / "leaderboard.json").read_text())
    assert sorted(line["method"] for line in found["methods"]) == ["base", "samples", "unidetox"]
    tp = {row["cell"]: row["metrics"]["tp_all"]["value"] for row in result.rows}
    assert {line["cell"]: line["tp_all"] for line in found["cells"]} == tp
    for line in found["methods"]:
        assert line["tp_all"] == pytest.approx(
            sum(tp[f"{family}-{line['method']}-s5"] for family in ("gpt2", "opt")) / 2
        )
        assert line["rank"] in (1, 2, 3) and line["families"] == 2 and line["incomplete"] is None
    assert '<section id="leaderboard">' in (result.folder / "report.html").read_text()
    client, runs = tracked(root, "mini")
    (parent,) = (run.info.run_id for run in runs if tag(run, "kind") == "parent")
    ranking = json.loads(Path(client.download_artifacts(parent, "ranking.json")).read_text())
    methods = [dict(zip(ranking["columns"], line, strict=True)) for line in ranking["data"]]
    assert [line["tp_all"] for line in methods] == [line["tp_all"] for line in found["methods"]]
    assert {"leaderboard.json", "leaderboard.csv"} <= {
        Path(each.path).name for each in client.list_artifacts(parent, "report")
    }


def test_the_tables_hold_every_row_once(first):
    _, result = first
    generations = pl.read_parquet(result.folder / "generations.parquet")
    assert dict(generations.schema) == dict(GENERATIONS)
    assert generations.height == 6 * 8 * 2 * 3
    assert generations.select("cell", "prompt_id", "run", "sample").n_unique() == generations.height
    scores = pl.read_parquet(result.folder / "scores.parquet")
    assert dict(scores.schema) == dict(SCORES)
    counts = dict(scores.group_by("metric").len().iter_rows())
    assert counts == {"toxicity": 2 * 288, "ppl": 288, "clean_ppl": 6 * 8, "mmlu": 6 * 8}
    # The control's corpus and UniDetox's are two texts of the same size; the main one is UniDetox's.
    corpora = {path.stem: pl.read_parquet(path) for path in (result.folder / "corpora").iterdir()}
    assert {name: table.height for name, table in corpora.items()} == {"samples": 8, "unidetox": 8}
    assert corpora["samples"]["text"].to_list() != corpora["unidetox"]["text"].to_list()
    main = result.folder / "corpus.parquet"
    assert main.read_bytes() == (result.folder / "corpora" / "unidetox.parquet").read_bytes()
    released = pl.read_csv(result.folder / "corpus.csv", infer_schema=False)
    assert released.columns == ["Text"]
    assert released["Text"].to_list() == corpora["unidetox"]["text"].to_list()


def test_the_searched_setting_is_everyones(first):
    _, result = first
    search = json.loads((result.folder / "search.json").read_text())
    assert len(search["trials"]) == 2 and search["base_family"] == "gpt2"
    for row in result.rows:
        if row["method"] != "base":
            assert {name: row["settings"][name] for name in ("steps", "lr")} == search["chosen"]


def read_as(run) -> set[str]:
    """What a run read data sets for."""
    return {
        mark.value
        for each in run.inputs.dataset_inputs
        for mark in each.tags
        if mark.key == "mlflow.data.context"
    }


def test_tracking_holds_the_run(first, root):
    client, runs = tracked(root, "mini")
    assert {run.info.status for run in runs} == {"FINISHED"}
    kinds: dict[str, list] = {}
    for run in runs:
        kinds.setdefault(tag(run, "kind"), []).append(run)
    assert {kind: len(found) for kind, found in kinds.items()} == {
        "parent": 1, "toxic": 1, "corpus": 2, "search": 1, "trial": 2, "cell": 6
    }  # fmt: skip
    contexts = {run.info.run_id: read_as(run) for run in kinds["cell"]}
    assert all("eval" in found for found in contexts.values())
    trained = [run for run in kinds["cell"] if "train" in contexts[run.info.run_id]]
    assert {run.info.run_id for run in trained} == {
        run.info.run_id for run in kinds["cell"] if tag(run, "model_id") != "-"
    }
    assert {tag(run, "method") for run in trained} == {"samples", "unidetox"} and len(trained) == 4
    assert {tag(run, "family") for run in trained} == {"gpt2", "opt"}
    # What a cell trained on is the corpus that lies in the store, by hash.
    stored = {tag(run, "corpus_sha256") for run in kinds["corpus"]}
    assert {tag(run, "corpus_sha256") for run in trained} == stored and len(stored) == 2
    for run in kinds["corpus"]:
        assert [file.path for file in client.list_artifacts(run.info.run_id, "corpus")] == [
            "corpus/corpus.parquet"
        ]
    parent = kinds["search"][0]
    for run in kinds["trial"]:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id and "tp_all" in run.data.metrics
    assert {tag(run, "stage") for run in kinds["cell"]} == {"cell"}
    assert len({frozenset(run.data.tags) - {"unidetox.nonfinite"} for run in kinds["cell"]}) == 1
    names = {
        frozenset({"tp_id", "tp_ood", "ppl", "mmlu", "clean_ppl"} & set(run.data.metrics))
        for run in kinds["cell"]
    }
    assert [len(found) for found in names] == [5]


def test_the_corpora_are_judged_and_compared(first, root):
    _, result = first
    found = json.loads((result.folder / "content.json").read_text())
    assert found["reference"] == "samples" and [pair["corpus"] for pair in found["pairs"]] == ["unidetox"]
    assert [judge["judge"] for judge in found["judges"]] == ["tiny-bert", "words"]
    for judge in found["judges"]:
        means = {entry["corpus"]: entry["mean"] for entry in judge["numbers"]}
        assert set(means) == {"samples", "unidetox"} and means["unidetox"]["diff"] is not None
        assert all(mean["n"] + mean["failed"] == 8 for mean in means.values())
    page = (result.folder / "report.html").read_text()
    assert '<section id="content">' in page and "samples (reference)" in page
    _, runs = tracked(root, "mini")
    (stored,) = (run.data.metrics for run in runs if tag(run, "kind") == "parent")
    lengths = {entry["corpus"]: entry["lengths"] for entry in found["corpora"]}
    assert stored["content/unidetox/tokens"] == lengths["unidetox"]["tokens"]["total"]
    for judge in found["judges"]:
        shares = {entry["corpus"]: entry["share"] for entry in judge["numbers"]}
        assert stored[f"content/unidetox/{judge['judge']}/diff/toxic"] == shares["unidetox"]["diff"]


def test_the_report_is_there(first):
    _, result = first
    page = (result.folder / "report.html").read_text()
    assert "gpt2" in page and "unidetox" in page and (result.folder / "report.md").exists()
    assert oct(result.folder.stat().st_mode & 0o777) == "0o700"
    assert not (result.folder / "ray").exists()


def test_the_same_command_again_reuses_everything_and_starts_no_ray(first, root):
    """In a process of its own, where ray would be seen among the loaded modules."""
    path, result = first
    before = {
        name: (result.folder / name).read_bytes()
        for name in ("results.json", "corpus.parquet", "scores.parquet")
    }
    code = (
        "import sys\n"
        "from unidetox_ray import pipeline\n"
        "from unidetox_ray.config import load\n"
        f"result = pipeline.run(load({str(path)!r}))\n"
        "print([stage['stage'] for stage in result.stages if not stage['reused']], 'ray' in sys.modules, result.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[] False 0", done.stderr[-2000:]
    for name in ("corpus.parquet", "scores.parquet"):
        assert (result.folder / name).read_bytes() == before[name]
    again = json.loads((result.folder / "results.json").read_text())
    assert [row["metrics"] for row in again] == [row["metrics"] for row in json.loads(before["results.json"])]
    # What was reused is recorded as it was: no run says that a setting changed.
    _, runs = tracked(root, "mini")
    assert [name for run in runs for name in run.data.tags if name.startswith("unidetox.changed")] == []


@pytest.mark.long
def test_a_family_that_cannot_be_opened_fails_alone(first, root):
    assert first
    path = experiment_file(
        root, name="broken", models=with_a_broken_one(root), search=None,
        methods=["base", "samples"],
        evaluate={"continuations": 2, "max_new_tokens": 4, "runs": 1, "ppl_model": None, "scorers": [{"name": "words", "kind": "lexicon", "source": "world"}]},
    )  # fmt: skip
    broken = pipeline.run(load(path))
    rows = {row["cell"]: row for row in broken.rows}
    assert broken.exit_code == 3
    assert {cell: row["status"] for cell, row in rows.items()} == {
        "gpt2-base-s5": "ok", "gpt2-samples-s5": "ok", "opt-base-s5": "failed", "opt-samples-s5": "failed"
    }  # fmt: skip
    for cell in ("opt-base-s5", "opt-samples-s5"):
        assert rows[cell]["metrics"] == {} and rows[cell]["error"]
        assert "\n" not in rows[cell]["error"]
    assert "model not opened" in rows["opt-base-s5"]["error"]
    assert "tp_all" in rows["gpt2-samples-s5"]["metrics"]
    _, runs = tracked(root, "broken")
    corpus = next(tag(run, "corpus_sha256") for run in runs if tag(run, "kind") == "corpus")
    known = {run.info.run_name: tag(run, "corpus_sha256") for run in runs if tag(run, "kind") == "cell"}
    assert known["opt-samples-s5"] == known["gpt2-samples-s5"] == corpus and known["opt-base-s5"] == "-"
    status = {run.info.run_name: run.info.status for run in runs}
    assert status["opt-base-s5"] == status["opt-samples-s5"] == "FAILED"
    assert status["gpt2-base-s5"] == status["gpt2-samples-s5"] == status["broken"] == "FINISHED"


def test_a_run_that_cannot_go_on_is_failed_in_the_store(first, root):
    empty = root / "empty"
    empty.mkdir()
    path = experiment_file(root, name="stops", models={"gpt2": str(empty)})
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        pipeline.run(load(path))
    _, runs = tracked(root, "stops")
    assert [run.info.status for run in runs] == ["FAILED"]
