"""The content analysis of corpora in the store: every number once, under one scheme of names, and no word of a text."""

from __future__ import annotations

import json

import polars as pl
import pytest

from unidetox_ray.artifacts import RunFolder
from unidetox_ray.config import resolve
from unidetox_ray.metrics import content
from unidetox_ray.metrics.classifier import LexiconClassifier
from unidetox_ray.metrics.content_classifier import JUDGED, judge_toxicity
from unidetox_ray.records import Recorder
from unidetox_ray.stages.context import Context
from unidetox_ray.tracking import content_metrics, open_tracker, read_runs

TEXTS = {
    "samples": ["the red fox runs", "a calm fox sleeps", "the owl is grim", "the red fox runs"],
    "mine": ["the owl is kind", "a grim owl is a grim owl", "owls are kind to foxes", "an owl"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """content.json of two small corpora, judged by a word list and by a made-up classifier of two labels."""
    root = tmp_path_factory.mktemp("content")
    lexicon = LexiconClassifier(["grim"])
    tables = []
    for label, texts in TEXTS.items():
        pl.DataFrame({"text": texts, "n_tokens": [len(text.split()) for text in texts]}).write_parquet(
            root / f"{label}.parquet"
        )
        tables.append(judge_toxicity("words", label, texts, lexicon, {"source": "word list"}))
        about = {"labels": ["left @ wing", "right"], "head": "single-label"}
        tables.append(
            pl.DataFrame(
                {
                    "corpus": label, "row": range(4), "judge": "leaning", "kind": "labels",
                    "values": [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], None if label == "mine" else [0.7, 0.3]],
                    "at_limit": False, "error": None, "about": json.dumps(about),
                },
                schema=dict(JUDGED),
            )
        )  # fmt: skip
    paths = {label: root / f"{label}.parquet" for label in TEXTS}
    content.analyse(paths, "samples", judged=pl.concat(tables), folder=root)
    return root


def test_every_number_has_one_name(folder):
    value = json.loads((folder / "content.json").read_text())
    found = content_metrics(value)
    assert all(name.startswith(("content/samples/", "content/mine/")) for name in found)
    assert all(isinstance(number, float) for number in found.values())
    assert found["content/samples/texts"] == 4.0 and found["content/samples/tokens"] == 16.0
    assert found["content/samples/words_per_text"] == 4.0 and found["content/samples/duplicates_exact"] == 1.0
    assert found["content/mine/repeated_1"] == pytest.approx((0 + 3 / 7 + 0 + 0) / 4)
    assert found["content/samples/words/toxic"] == found["content/mine/words/toxic"] == 0.25
    assert found["content/mine/words/diff/toxic"] == 0.0
    assert found["content/samples/leaning/right"] == 0.25
    assert 0 < found["content/mine/overlap/jaccard_1"] < 1
    # Only the other corpus is compared with the reference.
    assert not any("diff" in name or "overlap" in name for name in found if "/samples/" in name)


def test_what_is_withheld_is_absent_and_its_failures_are_there(folder):
    value = json.loads((folder / "content.json").read_text())
    (withheld,) = [
        entry["share"] for entry in value["judges"][1]["numbers"]
        if entry["corpus"] == "mine" and entry["label"] == "right"
    ]  # fmt: skip
    assert withheld["value"] is None and withheld["failed"] == 1
    found = content_metrics(value)
    assert "content/mine/leaning/right" not in found and "content/mine/leaning/mean/right" not in found
    assert found["content/mine/leaning/failed/right"] == 1.0


def test_the_parent_run_has_them_under_names_that_mlflow_takes_and_no_word(folder, tmp_path):
    experiment = resolve(
        {"name": "content", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base"], "models": {"gpt2": "scratch:"},
         "data": dict.fromkeys(("toxic", "prompts", "clean", "mmlu", "scorer"), "world") | {"pretrain": ["world"]}},
    )  # fmt: skip
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with open_tracker(uri, experiment="content") as tracker:
        recorder = Recorder(Context(experiment, RunFolder(tmp_path, "content", None)), tracker)
        recorder.begin()
        recorder.content(folder)
    (parent,) = read_runs(uri, "content")
    expected = content_metrics(json.loads((folder / "content.json").read_text()))
    spelled = {name.replace(" @ ", " .at. "): number for name, number in expected.items()}
    assert {name: parent["metrics"].get(name) for name in spelled} == pytest.approx(spelled)
    assert "content/samples/leaning/left .at. wing" in parent["metrics"]
    assert "nonfinite_count" not in parent["metrics"] or parent["metrics"]["nonfinite_count"] == 0
    assert not any(word in name for name in parent["metrics"] for word in ("fox", "owl", "grim"))
