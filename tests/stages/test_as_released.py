"""`fidelity: as_released` through the whole pipeline, each stage's result made again from the settings alone.

OPT is the family: it has a padding token of its own, and its tokenizer puts a BOS before a text.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from unidetox_ray import pipeline
from unidetox_ray.artifacts import file_sha256, read_manifest
from unidetox_ray.config import resolve
from unidetox_ray.core.loop import PlainStepper, train
from unidetox_ray.families.loading import load_model, load_tokenizer, special_ids
from unidetox_ray.stages.continuations import continuations
from unidetox_ray.stages.corpus import CorpusWorker
from unidetox_ray.stages.training import loop_settings, rows_of, set_dropout

pytestmark = [pytest.mark.ray, pytest.mark.long]

CELL = "opt-unidetox-s5"


@pytest.fixture(scope="module")
def base(models, tmp_path_factory) -> Path:
    """The family's model with the dropout of the real one; the preset leaves it to the model (row 12)."""
    folder = tmp_path_factory.mktemp("base") / "opt"
    shutil.copytree(models.root / "opt", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.1}))
    return folder


@pytest.fixture(scope="module")
def released(ray_session, base, tmp_path_factory):
    """(experiment, result) of the smallest run of the preset: one family, two cells, no search."""
    experiment = resolve(
        {
            "name": "released", "seed": 5, "fidelity": "as_released", "base_family": "opt", "families": ["opt"], "methods": ["base", "unidetox"],
            "storage": str(tmp_path_factory.mktemp("released")), "models": {"opt": str(base)},
            "data": dict.fromkeys(("toxic", "prompts", "mmlu"), "world"),
            "toxic": {"steps": 8, "lr": 5e-3, "max_length": 32}, "corpus": {"num_texts": 8, "max_length": 24},
            "finetune": {"steps": 8, "lr": 5e-3, "batch_size": 4, "max_length": 32},
            "evaluate": {"continuations": 4, "max_new_tokens": 8, "runs": 1, "ppl_model": "opt",
                         "scorers": [{"name": "words", "kind": "lexicon", "source": "world"}]},
            "tracking": {"uri": "none"}, "limit": 8,
        }
    )  # fmt: skip
    return experiment, pipeline.run(experiment)


def folder_of(result, start: str) -> Path:
    (found,) = [path for kind in ("models", "stages") for path in (result.folder / kind).glob(f"{start}-*")]
    return found


def test_one_command_passes_every_stage_and_each_hands_its_result_on(released):
    """Rows 13, 33 and 35: by key and hash; nothing is looked for under a name that somebody wrote down."""
    _, result = released
    assert result.exit_code == 0 and {row["status"] for row in result.rows} == {"ok"}
    keys = {stage["stage"]: stage["key"] for stage in result.stages}
    assert list(keys) == ["models", "toxic", "corpus-unidetox", "finetune", "generate", "score", "content"]
    text, cell = read_manifest(folder_of(result, "corpus-unidetox")), read_manifest(folder_of(result, CELL))
    assert text.inputs["toxic"] == keys["toxic"] and cell.inputs["corpus"] == keys["corpus-unidetox"]
    generated = read_manifest(folder_of(result, "generate")).inputs
    assert generated[CELL] == cell.key and generated["opt-base-s5"] == text.inputs["base"]
    # What the cell was trained on is the corpus that lies there, byte for byte.
    sha256 = file_sha256(result.folder / "corpus.parquet")
    settings = json.loads((folder_of(result, CELL) / "settings.json").read_text())
    row = next(row for row in result.rows if row["method"] == "unidetox")
    assert (
        sha256
        == settings["corpus_sha256"]
        == cell.inputs["corpus_sha256"]
        == row["settings"]["corpus_sha256"]
    )
    assert row["settings"]["fidelity"] == "as_released"
    for row in result.rows:
        assert {"tp_all", "emt_id", "ppl", "ppl_dropped", "dist3", "mmlu"} <= set(row["metrics"])
        assert all(math.isfinite(metric["value"]) for metric in row["metrics"].values())


def test_the_corpus_holds_tokens_and_their_text(released, base):
    """Row 8."""
    _, result = released
    tokenizer, table = load_tokenizer(str(base)), pl.read_parquet(result.folder / "corpus.parquet")
    assert table.height == 8 and table["n_tokens"].to_list() == table["token_ids"].list.len().to_list()
    for ids, text in table.select("token_ids", "text").iter_rows():
        assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_the_corpus_is_what_the_released_sampling_makes_of_the_toxic_model(released, base):
    """Rows 1 to 3: made again here, and other text as soon as one of the preset's values is the paper's."""
    experiment, result = released

    def sampled(**changes):
        section = experiment.corpus.model_copy(update={"num_texts": 8, **changes})
        worker = CorpusWorker(
            {
                "section": {**section.model_dump(mode="json"), "beta": section.beta}, "method": "unidetox", "threads": 1,
                "models": [{"path": str(base)}, {"path": str(folder_of(result, "toxic-opt"))}],
            }
        )  # fmt: skip
        return worker.work({"shard": 0, "first": 0, "rows": 8})["token_ids"].to_list()

    stored = pl.read_parquet(result.folder / "corpus.parquet")["token_ids"].to_list()
    assert sampled() == stored
    for change in ({"kv_cache": "separate"}, {"top_k": 0}, {"contrast_dtype": "fp32"}, {"precision": "fp32"}):
        assert sampled(**change) != stored, change


def test_both_trainings_are_bfloat16_throughout_and_equal_the_plain_loop(released, base):
    """Rows 9 to 12, through DeepSpeed: padding is a target, the set is padded to its longest, dropout is the model's own."""
    experiment, result = released
    section = experiment.finetune
    assert section.dropout is None and load_model(str(folder_of(result, CELL))).config.dropout == 0.1

    def again(dropout=None, append_eos=section.append_eos, **changes):
        loop = replace(loop_settings(section, steps=section.steps, seed=5), **changes)
        torch.manual_seed(loop.seed)
        tokenizer, model = load_tokenizer(str(base)), load_model(str(base))
        if dropout is not None:
            set_dropout(model, dropout)
        ids = special_ids(tokenizer, model.config)
        texts = SimpleNamespace(
            texts=result.folder / "corpus.parquet", append_eos=append_eos, max_length=section.max_length
        )
        return train(
            PlainStepper(model, loop), rows_of(texts, tokenizer, ids.eos)[0], ids.pad, loop
        ).loss, model

    for start in ("toxic-opt", CELL):
        kinds = {
            tensor.dtype for tensor in load_file(folder_of(result, start) / "model.safetensors").values()
        }
        assert kinds == {torch.bfloat16}
    losses = pl.read_parquet(folder_of(result, CELL) / "train_log.parquet")["loss"].to_list()
    expected, model = again()
    assert losses == pytest.approx(expected, abs=1e-3)
    saved = load_file(folder_of(result, CELL) / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in saved and not name.endswith("k_proj.bias"):  # its gradient is 0 but for rounding
            assert float((saved[name].float() - tensor.float()).abs().mean()) < 1e-3, name
    for change in ({"loss_on_padding": False}, {"append_eos": True}, {"precision": "fp32"}, {"dropout": 0.0}):
        other = again(**change)[0]
        assert max(abs(a - b) for a, b in zip(other, losses, strict=True)) > 2e-3, change


def test_opt_learns_its_own_padding_token(released, base):
    """Row 9: what a loss on padding does to a family whose padding is no end token."""
    _, result = released
    table = pl.read_parquet(result.folder / "corpus.parquet")
    tokenizer = load_tokenizer(str(base))
    pad = tokenizer.pad_token_id
    assert pad != tokenizer.eos_token_id and pad != tokenizer.bos_token_id
    ids = torch.tensor([[*tokenizer(table["text"][0])["input_ids"], pad]])

    def chance(folder):
        with torch.inference_mode():
            return float(torch.softmax(load_model(str(folder))(input_ids=ids).logits[0, -1].float(), -1)[pad])

    assert chance(folder_of(result, CELL)) > 2 * chance(base)


def test_continuations_are_sampled_as_released(released, base):
    """Rows 18 and 19: both cells' text made again, and other text with one of the paper's values."""
    experiment, result = released
    table, prompts = (
        pl.read_parquet(result.folder / f"{name}.parquet") for name in ("generations", "prompts")
    )
    pairs = list(prompts.select("prompt_id", "prompt").iter_rows())
    for cell, folder in (("opt-base-s5", base), (CELL, folder_of(result, CELL))):
        model, tokenizer = load_model(str(folder), dtype="bfloat16"), load_tokenizer(str(folder))

        def texts(model=model, tokenizer=tokenizer, **changes):
            settings = experiment.evaluate.model_copy(update=changes)
            rows = continuations(model, tokenizer, pairs, settings, cell="x", run=0, decode_rows=512)
            return [(row["prompt_id"], row["sample"], row["text"]) for row in rows]

        stored = list(table.filter(pl.col("cell") == cell).select("prompt_id", "sample", "text").iter_rows())
        assert texts() == stored
        for change in ({"top_k": 0}, {"prompt_bos": "auto"}):
            assert texts(**change) != stored, change
