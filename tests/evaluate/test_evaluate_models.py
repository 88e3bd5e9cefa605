"""Models are continued through the experiment's stage: two at once, one of which is damaged, beside a file."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unidetox_ray.data.base import load
from unidetox_ray.errors import UnidetoxError
from unidetox_ray.evaluate.verb import Request, evaluate
from unidetox_ray.families.tokenizers import gpt2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = gpt2(load("scorer", dataset="world").table["text"].to_list()[:300], 400)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.ray
def test_a_model_a_damaged_one_and_a_file(model, judge, write, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    prompts = load("prompts", dataset="world").table.filter(split="test")
    stored = write(
        "file.jsonl",
        [{"prompt_id": row["prompt_id"], "prompt": row["prompt"], "text": "all is well", "domain": row["domain"], "distribution": row["distribution"]}
         for row in prompts.iter_rows(named=True)],
    )  # fmt: skip
    results = evaluate(
        Request(
            sources=(str(model), str(damaged), str(stored)), scorers=(str(judge),), prompts="world", limit=6,
            overrides=("continuations=2", "max_new_tokens=6"), out=tmp_path / "out",
        )
    )  # fmt: skip
    by_name = {source["source"]: source for source in results["sources"]}
    assert (
        by_name["tiny"]["counts"]["judge"]["continuations"] == 12
        and by_name["tiny"]["counts"]["judge"]["failed"] == 0
    )
    assert by_name["tiny"]["metrics"]["tp_all"]["value"] is not None
    assert by_name["damaged"]["status"] == "failed" and "model" in by_name["damaged"]["error"]
    # --limit takes the first rows of a file and prompts of every domain for a model: what both hold is compared.
    (pair,) = results["comparisons"]
    assert pair["source"] == "file" and pair["reference"] == "tiny" and pair["n"] >= 1
    assert results["sampling"]["runs"] == 1 and results["prompts"]["name"] == "world"
    assert not (tmp_path / "out" / ".work").exists()


def test_what_is_no_model(tmp_path, judge):
    (tmp_path / "empty").mkdir()
    for given, said in ((tmp_path / "empty", "holds no config.json"), ("./none", "no such file or folder")):
        with pytest.raises(UnidetoxError, match=said) as refused:
            evaluate(Request(sources=(str(given),), scorers=(str(judge),), prompts="world"))
        assert refused.value.exit_code == 2
