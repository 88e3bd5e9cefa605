"""The section on the corpora's content: numbers, redaction, hostile names, absent and damaged files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from unidetox_ray.metrics import content
from unidetox_ray.metrics.content_classifier import JUDGED
from unidetox_ray.report import build, load

LEFT = "quibbling"


def judged_rows(label: str, judge: str, kind: str, values: list, about: dict) -> pl.DataFrame:
    rows = [
        {"corpus": label, "row": row, "judge": judge, "kind": kind, "values": value, "at_limit": kind == "labels",
         "error": None if value else "no token to judge", "about": json.dumps(about)}
        for row, value in enumerate(values)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=dict(JUDGED))


@pytest.fixture
def analysed(run_folder: Path) -> Path:
    """The run with an analysis of its own two corpora, by two scorers and a classifier of hostile labels."""
    paths = {label: run_folder / "corpora" / f"{label}.parquet" for label in ("samples", "unidetox")}
    table = pl.read_parquet(paths["unidetox"])
    words = pl.format("{} {}", pl.lit(f"{LEFT} gargling"), pl.col("text"))
    table.with_columns(text=pl.when(pl.col("text_id") < 9).then(words).otherwise("text")).write_parquet(
        paths["unidetox"]
    )
    noise = np.random.default_rng(2)
    rows = []
    for label, level in (("samples", 0.8), ("unidetox", 0.2)):
        scores = [[float(value)] for value in noise.random(640) * level]
        rows.append(judged_rows(label, "world-bert", "toxicity", scores, {"source": "scratch:world-bert"}))
        rows.append(judged_rows(label, "lexicon", "toxicity", [None] * 640, {"source": "word list"}))
        about = {
            "source": "org/leaning",
            "revision": "abc",
            "sha256": "ab" * 32,
            "labels": ["<b>left</b>", "right"],
            "head": "single-label",
        }
        rows.append(judged_rows(label, "leaning", "labels", [[level, 1 - level]] * 640, about))  # fmt: skip
    content.analyse(paths, "samples", judged=pl.concat(rows), folder=run_folder)
    return run_folder


def section(source: str) -> str:
    found = re.search(r'<section id="content">.*?</section>', source, re.S)
    assert found is not None
    return found[0]


def test_every_corpus_and_pair_is_shown_with_its_numbers(analysed: Path) -> None:
    paths = build(analysed)
    part = section(paths.html.read_text("utf-8"))
    stored = json.loads((analysed / "content.json").read_text("utf-8"))
    assert "samples (reference)" in part and "The corpora as text" in part
    mean = next(entry["mean"] for entry in stored["judges"][0]["numbers"] if entry["corpus"] == "unidetox")
    assert f"{mean['value']:.3g}"[:5] in part and "Δ" in part
    assert f"{stored['pairs'][0]['overlap']['jaccard_1']:.3g}" in part
    assert "org/leaning" in part and "ab" * 32 in part and "texts of samples that fill the limit" in part
    # All of the second scorer's judgements failed: a dash with the reason, never a number.
    assert "640 of 640 texts failed" in part
    assert "&lt;b&gt;left&lt;/b&gt;" in part and "<b>left" not in part
    assert "Content of the corpora" in paths.markdown.read_text("utf-8")


def test_words_are_masked_unless_asked_for(analysed: Path) -> None:
    assert LEFT in (analysed / "content.json").read_text("utf-8")
    for path in (build(analysed).html, analysed / "report.md"):
        source = path.read_text("utf-8")
        assert LEFT not in source and "q••••••••" in source and "harbours" not in source
    shown = section(build(analysed, show_text=True).html.read_text("utf-8"))
    assert f"{LEFT} gargling" in shown and "redacted" not in shown


def test_a_run_without_an_analysis_has_no_such_section(run_folder: Path) -> None:
    assert '<section id="content">' not in build(run_folder).html.read_text("utf-8")
    assert load.load(run_folder).problems == []


@pytest.mark.parametrize(
    "stored", ["{", "[]", "{}", '"x"', '{"settings": {}, "reference": "a", "equal_words": null}']
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(run_folder: Path, stored: str) -> None:
    (run_folder / "content.json").write_text(stored, "utf-8")
    source = build(run_folder).html.read_text("utf-8")
    assert "Not shown: content.json" in source and '<section id="corpus">' in source
    assert '<section id="content">' not in source


@pytest.mark.parametrize("place", ["corpora", "pairs", "judges"])
def test_a_part_of_another_shape_is_damage_too(analysed: Path, place: str) -> None:
    stored = json.loads((analysed / "content.json").read_text("utf-8"))
    stored[place][0].pop("lengths", None)
    stored[place][0].pop("overlap", None)
    stored[place][0].pop("numbers", None)
    (analysed / "content.json").write_text(json.dumps(stored), "utf-8")
    assert "Not shown: content.json is damaged" in build(analysed).html.read_text("utf-8")


def test_one_corpus_alone_has_no_comparison(run_folder: Path) -> None:
    content.analyse({"unidetox": run_folder / "corpora" / "unidetox.parquet"}, "unidetox", folder=run_folder)
    part = section(build(run_folder).html.read_text("utf-8"))
    assert "(reference)" not in part and "Overlap" not in part and "mean toxicity" not in part
