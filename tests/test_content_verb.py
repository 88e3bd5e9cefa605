"""`unidetox content` as a person meets it; texts stay masked unless asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from unidetox_ray.content_files import labels, masked
from unidetox_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
SECRET = "marmalade"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    (folder / "other").mkdir()
    pl.DataFrame({"text": [f"the {SECRET} sings a song", f"a {SECRET} of old"] * 6, "n_tokens": [6, 5] * 6}).write_parquet(
        folder / "mine.parquet"
    )  # fmt: skip
    (folder / "plain.csv").write_text("Text\n" + "the fox eats\na fox sleeps\n" * 8, "utf-8")
    (folder / "other" / "mine.jsonl").write_text('{"text": "the owl sings"}\n' * 5, "utf-8")
    (folder / "wrong.csv").write_text("words\nthe fox\n", "utf-8")
    classifier(folder / "leaning")
    return folder


def classifier(folder: Path) -> None:
    """A random text classifier of two labels."""
    from transformers import BertConfig, BertForSequenceClassification

    from unidetox_ray.families.tokenizers import word_pieces

    torch.manual_seed(1)
    tokenizer = word_pieces(["the fox sings", "a song of old", "marmalade"], 80)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, id2label={0: "left", 1: "right"}, label2id={"left": 0, "right": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def call(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "unidetox_ray", "content", *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_json_masks_every_word_and_names_the_classifier(workplace):
    done = call(
        workplace,
        "mine.parquet",
        "plain.csv",
        "--reference",
        "plain.csv",
        "--classifier",
        "leaning",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["reference"] == "plain" and [entry["corpus"] for entry in value["corpora"]] == [
        "mine",
        "plain",
    ]
    assert value["corpora"][0]["lengths"]["tokens"]["total"] == 66
    (judge,) = value["judges"]
    assert judge["about"]["source"] == "leaning" and len(judge["about"]["sha256"]) == 64
    assert sum(row["share"]["value"] for row in judge["numbers"] if row["corpus"] == "mine") == 1
    assert SECRET not in done.stdout + done.stderr and str(workplace) not in done.stdout
    assert value["pairs"][0]["distinctive"][0]["ngram"] == "m••••••••"


def test_the_table_is_masked_unless_asked_for(workplace):
    done = call(workplace, "mine.parquet", "plain.csv", "other/mine.jsonl")
    assert done.returncode == 0 and SECRET not in done.stdout and "m••••••••" in done.stdout
    assert f"{workplace.name}/mine" in done.stdout and "other/mine" in done.stdout
    shown = call(workplace, "mine.parquet", "plain.csv", "--show-text")
    assert shown.returncode == 0 and SECRET in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine.parquet"], "1 corpus file given; give two or more"),
        (["mine.parquet", "./mine.parquet"], "is given twice"),
        (["mine.parquet", "none.csv"], "no such corpus file: none.csv"),
        (["mine.parquet", "wrong.csv"], "no column 'text' or 'Text'"),
        (
            ["mine.parquet", "plain.csv", "--reference", "x.csv"],
            "--reference x.csv: is not among the corpora",
        ),
        (["mine.parquet", "plain.csv", "--revision", "abc"], "give --classifier once"),
        (
            ["mine.parquet", "plain.csv", "--classifier", "other"],
            "content classifier other: cannot be loaded",
        ),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(workplace, arguments, words):
    done = call(workplace, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_labels_tell_equal_names_apart():
    paths = [Path("a/x/corpus.parquet"), Path("b/x/corpus.csv"), Path("plain.csv")]
    assert list(labels(paths)) == ["x/corpus", "x/corpus (2)", "plain"]
    with pytest.raises(ConfigError, match="0 corpus file"):
        labels([])


def test_masking_reaches_every_word_and_nothing_else():
    value = {
        "corpus": "mine",
        "list": [{"ngram": "to be", "n": 2, "z": 1.5}],
        "words_by_tf_idf": [{"word": "so"}],
    }
    assert masked(value) == {
        "corpus": "mine", "list": [{"ngram": "t• b•", "n": 2, "z": 1.5}], "words_by_tf_idf": [{"word": "s•"}],
    }  # fmt: skip
