"""Every architecture is trained, saved and opened again by the product's own training, whole and with adapters."""

from __future__ import annotations

import json

import polars as pl
import pytest
import torch
from many_models import ARCHITECTURES, NO_BOTTLENECKS, build
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from unidetox_ray.artifacts import read_manifest
from unidetox_ray.core.loop import collate
from unidetox_ray.errors import ModelError
from unidetox_ray.families.bottleneck import with_bottlenecks
from unidetox_ray.families.loading import encode, load_model
from unidetox_ray.families.targets import lora_targets
from unidetox_ray.stages.training import set_dropout, with_lora

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0}
#: One of each kind of layer and of experts.
OPENED_BY_PEFT = {
    "qwen3",
    "gpt-neox",
    "bloom",
    "gpt-bigcode",
    "mixtral",
    "deepseek-v3",
    "mamba",
    "rwkv",
    "ctrl",
}
IDS = torch.tensor([[5, 6, 7, 20, 9, 300]])


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.fixture
def saved(tokenizer, tmp_path):
    def save(name, **how):
        folder = tmp_path / name.replace(" ", "-")
        build(name).save_pretrained(folder, **how)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def plain_loss(model, rows):
    """The mean over tokens, row by row, nothing padded."""
    set_dropout(model, 0.0)
    parts = []
    with torch.no_grad():
        for row in rows:
            scores = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1]
            parts.append(F.cross_entropy(scores.float(), torch.tensor(row[1:]), reduction="none"))
    return float(torch.cat(parts).mean())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole(name, saved, train_here):
    folder = saved(name)
    made = train_here(folder)
    log = pl.read_parquet(made / "train_log.parquet")
    assert 3.0 < log["loss"][0] < 9.0 and log["tokens"][0] > 0
    reopened = AutoModelForCausalLM.from_pretrained(made)
    assert AutoTokenizer.from_pretrained(made)("a")["input_ids"]
    assert type(reopened) is type(build(name))
    change = (logits(reopened) - logits(build(name))).abs().max()
    assert 1e-4 < change < 2.0  # AdamW's first step is lr for every weight
    assert torch.isfinite(logits(reopened)).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_loss_is_that_of_unpadded_texts(name, tokenizer, texts):
    """Padding, masks and the head on labelled positions alone change nothing, whatever the model attends by."""
    from unidetox_ray.core.forward import TrainingForward

    model = build(name)
    rows = [encode(tokenizer, text)[:length] for text, length in zip(texts, (20, 7, 13, 4), strict=False)]
    wanted = plain_loss(model, rows)
    batch = collate(rows, pad_id=tokenizer.eos_token_id, length=None, loss_on_padding=False)
    assert float(TrainingForward(model).loss(batch)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_finds_its_layers_and_is_merged(name, saved, train_here):
    folder = saved(name)
    made = train_here(folder, adapter={**LORA, "keep": str(folder)})
    targets = read_manifest(made).extra["adapter_targets"]
    assert targets == sorted(lora_targets(build(name))) and targets
    reopened = AutoModelForCausalLM.from_pretrained(made)
    assert not (made / "adapter_config.json").exists()
    assert (logits(reopened) - logits(build(name))).abs().max() > 1e-5
    head = reopened.get_output_embeddings().weight
    assert torch.equal(head, build(name).get_output_embeddings().weight)  # frozen
    stored = json.loads((made / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == str(folder)
    if name in OPENED_BY_PEFT:
        from peft import AutoPeftModelForCausalLM

        adapted = AutoPeftModelForCausalLM.from_pretrained(made / "adapter")
        assert torch.allclose(logits(adapted), logits(reopened), atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_adapter_learns(name):
    """An adapter on a layer whose weights the model reads without calling it would stay what it was."""
    kinds = {"lora": lambda model: with_lora(model, LORA)}
    if name in NO_BOTTLENECKS:
        with pytest.raises(ModelError, match="use adapter: lora"):
            with_bottlenecks(build(name), size=3, seed=1)
    else:
        kinds["bottleneck"] = lambda model: with_bottlenecks(model, size=3, seed=1)
    for make in kinds.values():
        model = make(build(name))
        ids = torch.arange(24).reshape(2, 12)
        for _ in range(2):  # what is 0 at the start hides the gradient of what is behind it
            model.zero_grad()
            model(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.requires_grad:
                        assert weight.grad is not None
                        weight.add_(weight.grad, alpha=-1e-3)
        still = [
            name
            for name, weight in model.named_parameters()
            if weight.requires_grad and not bool(weight.grad.abs().sum() > 0)
        ]
        assert not still


def test_a_model_in_pieces_and_its_texts_in_pieces(saved, train_here):
    """Sharded safetensors open, and a batch in pieces trains to the same model."""
    folder = saved("qwen2", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    whole, pieces = train_here(folder, steps=2), train_here(folder, steps=2, micro_batch=3)
    assert torch.allclose(logits(load_model(str(whole))), logits(load_model(str(pieces))), atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16_master", "bf16_pure"])
@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "lora"])
def test_bfloat16_in_pieces(precision, adapter, saved, train_here):
    """What a GPU is given: DeepSpeed's sharding optimiser adds up the gradients of pieces."""
    folder = saved("qwen3")
    whole = train_here(folder, steps=2, precision=precision, adapter=adapter)
    pieces = train_here(folder, steps=2, precision=precision, adapter=adapter, micro_batch=1)
    losses = [pl.read_parquet(made / "train_log.parquet")["loss"].to_list() for made in (whole, pieces)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    first = logits(load_model(str(folder), dtype="bfloat16")).float()
    moved = [logits(load_model(str(made), dtype="bfloat16")).float() - first for made in (whole, pieces)]
    assert F.cosine_similarity(moved[0].flatten(), moved[1].flatten(), dim=0) > 0.8


def test_tied_weights_stay_tied(saved, train_here):
    reopened = AutoModelForCausalLM.from_pretrained(train_here(saved("qwen2 tied")))
    assert reopened.get_output_embeddings().weight is reopened.get_input_embeddings().weight
