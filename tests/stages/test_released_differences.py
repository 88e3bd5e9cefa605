"""Rows of docs/fidelity.md that need a model and no cluster."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from unidetox_ray.errors import StageError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.families.loading import encode, load_model, load_tokenizer
from unidetox_ray.stages import corpus
from unidetox_ray.stages.continuations import continuations
from unidetox_ray.stages.saving import save_model

UNIDETOX = MethodEntry(method="unidetox", label="unidetox")


def test_both_models_of_the_contrast_are_plain_and_are_what_lies_in_their_folders(models, make_context):
    """Row 4."""
    section = make_context().experiment.corpus
    settings = {"section": {**section.model_dump(mode="json"), "beta": section.beta}, "method": "unidetox"}
    handles = [models["gpt2"], models["toxic"]]
    worker = corpus.CorpusWorker({**settings, "models": handles, "threads": 1})
    assert [type(model) for model in worker.models] == [GPT2LMHeadModel, GPT2LMHeadModel]
    for model, handle in zip(worker.models, handles, strict=True):
        stored, held = load_file(Path(handle["path"]) / "model.safetensors"), model.state_dict()
        assert stored.keys() <= held.keys() and not model.training
        assert all(torch.equal(held[name], tensor) for name, tensor in stored.items())
    base, toxic = (model.transformer.h[0].attn.c_attn.weight for model in worker.models)
    assert not torch.equal(base, toxic)


def test_weights_that_were_saved_wrong_are_noticed_when_they_are_reopened(models, tmp_path):
    """Row 6: what was written is read again before the training counts as done."""
    model, tokenizer = load_model(models["gpt2"]["path"]), load_tokenizer(models["gpt2"]["path"])
    engine = SimpleNamespace(
        module=model, device=torch.device("cpu"), zero_optimization_partition_weights=lambda: False
    )
    prompts = [encode(tokenizer, "The old people")]
    save_model(engine, model, tokenizer, tmp_path / "good", prompts, 0)
    assert torch.equal(load_model(str(tmp_path / "good")).lm_head.weight, model.lm_head.weight)

    write = model.save_pretrained

    def wrong(folder, **options):
        """What a disk does that loses a block."""
        state = {
            name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
        }
        state["transformer.h.0.mlp.c_proj.weight"][:64] = 0
        write(folder, state_dict=state)

    model.save_pretrained = wrong
    with pytest.raises(StageError, match="differ by"):
        save_model(engine, model, tokenizer, tmp_path / "bad", prompts, 0)


OTHER_TEXT = {
    "alpha": 0.2, "beta": 1.0, "top_k": 50, "top_p": 0.9, "temperature": 0.7, "kv_cache": "shared", "contrast_dtype": "bf16",
    "precision": "bf16", "seed": 1, "num_texts": 9, "max_length": 17,
}  # fmt: skip


def test_every_setting_of_the_corpus_names_another_corpus(models, make_context, monkeypatch):
    """Row 13: in the released code alpha names a folder and changes nothing. Only names are made here, no text."""
    seen = []

    class Named(Exception):
        pass

    def stop(worker, settings, orders, folder, **_):
        seen.append((folder.name, settings["section"]))
        raise Named

    monkeypatch.setattr(corpus, "fulfil", stop)
    toxic = models["toxic"]

    def named(*changes, toxic=toxic):
        with pytest.raises(Named):
            corpus.run(make_context("run", *changes), UNIDETOX, models["gpt2"], toxic)
        return seen[-1]

    plain, section = named()
    assert named("cluster.corpus_actors=7", "cluster.decode_rows=3", "finetune.lr=1")[0] == plain
    folders = {plain, named(toxic={**toxic, "key": "another toxic model"})[0]}
    for name, value in OTHER_TEXT.items():
        folder, changed = named(f"corpus.{name}={value}")
        # What is named is what the sampling is given.
        assert {key for key in section if section[key] != changed[key]} == {name} and changed[name] == value
        folders.add(folder)
    assert len(folders) == len(OTHER_TEXT) + 2 and section["beta"] == math.inf


@pytest.fixture
def flat(models) -> GPT2LMHeadModel:
    """A model that finds every next token nearly as likely as any other, the lower its id the more, whatever stands before."""
    model = load_model(models["gpt2"]["path"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.bias[0] = 1.0
        model.lm_head.weight[:, 0] = torch.linspace(0.1, 0.0, model.config.vocab_size)
    return model


@pytest.mark.parametrize(("fidelity", "top_k"), [("paper", 0), ("as_released", 50)])
def test_the_evaluations_top_k_reaches_the_sampler(models, make_context, flat, fidelity, top_k):
    """Row 18: one token after each of two prompts, 400 times."""
    tokenizer = load_tokenizer(models["gpt2"]["path"])
    settings = make_context("run", f"fidelity={fidelity}").experiment.evaluate
    assert settings.top_k == top_k and settings.top_p == 0.9
    settings = settings.model_copy(update={"continuations": 400, "max_new_tokens": 1, "prefix_cut": "tokens"})
    prompts = [("a", "Rain"), ("b", "The old people")]
    rows = continuations(flat, tokenizer, prompts, settings, cell="c", run=0, decode_rows=512)
    found = {row["text"] for row in rows}
    # The nucleus of a flat distribution is nine tenths of what is left, and the likeliest have the lowest ids; some
    # tokens are no text of their own.
    size = tokenizer.vocab_size if top_k == 0 else top_k
    allowed = {
        tokenizer.decode([token], skip_special_tokens=True) for token in range(math.ceil(0.9 * size) + 1)
    }
    assert len(rows) == 800 and found <= allowed
    assert len(found) > (100 if top_k == 0 else 35)
