"""Corpora of real text: their size, that nothing held out gets in, and that a small source lasts."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.artifacts import finished
from unidetox_ray.data.world import World
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.families.loading import load_tokenizer
from unidetox_ray.stages import corpus
from unidetox_ray.stages.needs import needed

SMALL = ("corpus.num_texts=12", "corpus.max_length=24")
CLEAN = World().clean()


def made(models, context, **settings):
    folder, manifest = corpus.run(context, MethodEntry(method="clean_text", label="clean_text", settings=settings), models["gpt2"], None)  # fmt: skip
    assert finished(folder, manifest.key) is not None
    return pl.read_parquet(folder / "corpus.parquet"), manifest


def test_as_many_texts_and_tokens_as_asked_for_and_none_held_out(models, make_context):
    table, manifest = made(models, make_context("run", *SMALL))
    assert table.height == 12 and set(table["n_tokens"]) == {23}
    assert manifest.extra["tokens"] == 12 * 23 and manifest.extra["held_out_removed"] == 0
    # Whole documents of a text are training documents; what is cut is the beginning of one.
    split = {name: CLEAN.filter(pl.col("split") == name)["text"].to_list() for name in ("train", "test")}
    for text in table["text"]:
        documents = text.split("\n\n")
        assert any(known.startswith(text) for known in split["train"]) or documents[0] in set(split["train"])
        assert not any(held_out in text for held_out in split["test"])
    tokenizer = load_tokenizer(models["gpt2"]["path"])
    for ids, text in table.select("token_ids", "text").iter_rows():
        assert tokenizer.decode(ids) == text


def test_documents_stay_whole_where_asked(models, make_context):
    table, _ = made(
        models, make_context("run", "corpus.num_texts=12", "corpus.max_length=512"), fill="documents"
    )
    train = set(CLEAN.filter(pl.col("split") == "train")["text"])
    assert table["ended"].all() and set(table["text"]) <= train and table["text"].n_unique() == 12


def test_the_text_is_a_function_of_the_seed_and_a_second_call_reads_it(models, make_context):
    context = make_context("run", *SMALL)
    first, manifest = made(models, context)
    again, found = made(models, context)
    assert again.equals(first) and found.key == manifest.key and context.stages[-1]["reused"]
    same, _ = made(models, make_context("other", *SMALL))
    assert same.equals(first)
    differs, _ = made(models, make_context("third", *SMALL, "corpus.seed=7"))
    assert differs["text"].to_list() != first["text"].to_list()


def test_a_file_gives_its_texts_without_the_held_out_ones_and_again_when_it_runs_out(
    models, make_context, tmp_path
):
    held_out = CLEAN.filter(pl.col("split") == "test")["text"].to_list()[:3]
    own = ["A text of one's own about the sea.", "Another one about the weather and the hills."]
    path = tmp_path / "own.jsonl"
    pl.DataFrame({"text": [*held_out, *own]}).write_ndjson(path)
    table, manifest = made(models, make_context("run", *SMALL), source=str(path), fill="documents")
    assert (
        set(table["text"]) <= {text[: len(row)] for text in own for row in table["text"]}
        and table.height == 12
    )
    assert manifest.extra["held_out_removed"] == 3 and manifest.extra["passes"] == 6.0
    assert table["text"].n_unique() == 2
    pl.DataFrame({"text": held_out}).write_ndjson(path)
    with pytest.raises(DataError, match=r"own\.jsonl: holds no text that is not held out"):
        made(models, make_context("none", *SMALL), source=str(path))


def test_without_clean_data_a_source_is_asked_for(make_context):
    data = {"toxic": "world", "prompts": "world", "mmlu": None, "pretrain": ["world"]}
    context = make_context("run", methods=["base", "clean_text"], data=data)
    with pytest.raises(
        ConfigError, match=r"^methods\.clean_text: takes its text from data\.clean, which is null"
    ):
        needed(context.experiment)
