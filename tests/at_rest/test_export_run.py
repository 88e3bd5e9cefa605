"""A whole run's corpora and results, exported: cards that the Hub reads, tables that a spreadsheet may open, nothing else."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest
from huggingface_hub import DatasetCard

from unidetox_ray.artifacts import (
    RunFolder,
    file_sha256,
    write_json,
    write_manifest,
    write_parquet,
    write_text,
)
from unidetox_ray.errors import ArtifactError, ConfigError
from unidetox_ray.exporting import export_run

TEXTS = ["the owl is kind", "=HYPERLINK(1)", "a calm fox; -1"]


@pytest.fixture
def run(tmp_path):
    """A run folder as the stages leave it: one corpus with its manifest, judgements of it, results."""
    folder = RunFolder(tmp_path, "run")
    made = folder.stage("corpus-unidetox", "k")
    write_parquet(made / "corpus.parquet", pl.DataFrame({"text": TEXTS, "n_tokens": [4, 5, 6]}))
    digest = file_sha256(made / "corpus.parquet")
    settings = {"method": "unidetox", "section": {"alpha": 0.1, "beta": "inf"}, "note": "a | b"}
    write_manifest(
        made, stage="corpus", key="k", seconds=1, config=settings, inputs={"base": "0123"},
        counts={"expected": 3, "ok": 3, "failed": 0}, extra={"sha256": digest, "tokens": 15, "ended": 2},
    )  # fmt: skip
    (folder.root / "corpora").mkdir()
    shutil.copyfile(made / "corpus.parquet", folder.root / "corpora" / "unidetox.parquet")
    write_text(
        folder.root / "config.yaml",
        "name: run\nfidelity: paper\nbase_family: gpt2\nmodels: {gpt2: {source: 'org/base', revision: abc}}\n",
    )
    write_json(folder.root / "results.json", [])
    write_parquet(folder.root / "results.parquet", pl.DataFrame({"cell": ["=1+1"], "value": [-0.5]}))
    write_text(folder.root / "generations.parquet", "hateful text")
    return folder.root


def test_a_corpus_leaves_with_a_card_that_the_hub_reads(run, tmp_path):
    out, labels = export_run(run, tmp_path / "out", licence="cc-by-4.0")
    assert labels == ["unidetox"] and out.stat().st_mode & 0o077 == 0
    folder = out / "corpora" / "unidetox"
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.size_categories == ["n<1K"]
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "corpus.parquet"}]
    assert pl.read_parquet(folder / "corpus.parquet")["text"].to_list() == TEXTS
    for said in (
        "org/base abc", "| section.alpha | 0.1 |", "| tokens | 15 |", "a \\| b", "can hold hateful",
        file_sha256(run / "corpora/unidetox.parquet"),
    ):  # fmt: skip
        assert said in card.text, said


def test_the_export_opens_with_the_data_sets_library(run, tmp_path, monkeypatch):
    from datasets import load_dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out, _ = export_run(run, tmp_path / "out")
    opened = load_dataset(str(out / "corpora" / "unidetox"), cache_dir=str(tmp_path / "cache"))
    assert opened["train"]["text"][:] == TEXTS


def test_no_cell_is_a_formula_and_no_text_of_a_model_beyond_the_corpora_leaves(run, tmp_path):
    out, _ = export_run(run, tmp_path / "out")
    corpus = (out / "corpora/unidetox/corpus.csv").read_text()
    assert "'=HYPERLINK(1)" in corpus and (out / "corpora/unidetox/corpus.csv-metadata.json").exists()
    assert pl.read_csv(out / "results/results.csv").rows() == [("'=1+1", -0.5)]
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert names == {
        "README.md", "config.yaml", "corpus.csv", "corpus.csv-metadata.json", "corpus.parquet",
        "results.csv", "results.json", "results.parquet",
    }  # fmt: skip


def test_judgements_of_the_corpus_stand_on_its_card(run, tmp_path):
    number = {"value": 0.25, "ci_low": 0.1, "ci_high": 0.5, "n": 3, "failed": 1, "diff": None}
    judge = {"judge": "words", "kind": "toxicity", "about": {}, "texts_at_limit": None,
             "numbers": [{"corpus": "unidetox", "mean": number, "share": {**number, "value": None}}]}  # fmt: skip
    settings = {"min_count": 1, "min_texts": 1, "threshold": 0.5}
    write_json(run / "content.json", {"reference": "unidetox", "equal_words": 1, "settings": settings,
                                      "corpora": [], "pairs": [], "judges": [judge]})  # fmt: skip
    out, _ = export_run(run, tmp_path / "out")
    card = (out / "corpora/unidetox/README.md").read_text()
    assert "| words | 0.250 | withheld | 0.100 – 0.500 | 3 | 1 |" in card


def test_what_cannot_be_vouched_for_stays(run, tmp_path):
    for licence in ("MIT License", "", "../x", "a\nb"):
        with pytest.raises(ConfigError, match="--licence"):
            export_run(run, tmp_path / "out", licence=licence)
    write_text(run / "content.json", json.dumps({"judges": 3}))
    with pytest.raises(ArtifactError, match=r"content\.json"):
        export_run(run, tmp_path / "out")
    (run / "content.json").unlink()
    write_parquet(run / "corpora/unidetox.parquet", pl.DataFrame({"text": ["other"], "n_tokens": [1]}))
    with pytest.raises(ArtifactError, match="nothing says where it comes from"):
        export_run(run, tmp_path / "out")
    shutil.rmtree(run / "corpora")
    for table in run.glob("results.*"):
        table.unlink()
    with pytest.raises(ConfigError, match="neither a corpus nor results"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
