"""Models that are incomplete, foreign or want to run code: one line with the folder; a model that merely lacks tokens works."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2LMHeadModel

from unidetox_ray import registry
from unidetox_ray.errors import ModelError
from unidetox_ray.families.loading import load_model, load_tokenizer, special_ids
from unidetox_ray.families.scratch import build_model
from unidetox_ray.families.tokenizers import train_tokenizer
from unidetox_ray.metrics.classifier import ToxicityClassifier
from unidetox_ray.metrics.content_classifier import ContentClassifier
from unidetox_ray.settings import EvaluateSection, ScratchSection
from unidetox_ray.stages.continuations import continuations

PROTOCOL = EvaluateSection(continuations=2, max_new_tokens=4, ppl_model=None)


@pytest.fixture
def causal(tmp_path):
    """(folder of a tiny GPT-2, model, tokenizer)."""
    family = registry.lookup("families", "gpt2")
    tokenizer = train_tokenizer(family, ["the cat sat on the mat"], 300)
    model = build_model(
        family, tokenizer, ScratchSection(hidden=16, layers=1, heads=2, max_positions=32, seed=5)
    ).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def bert(folder, kind=BertForSequenceClassification):
    tokenizer = train_tokenizer(registry.lookup("families", "opt"), ["the cat sat on the mat"], 300)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, num_labels=2, id2label={0: "toxic", 1: "insult"}, label2id={"toxic": 0, "insult": 1},
        problem_type="multi_label_classification", pad_token_id=1,
    )  # fmt: skip
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refusal(open_it, folder) -> str:
    with pytest.raises(ModelError) as refused:
        open_it(str(folder))
    message = str(refused.value)
    assert (
        str(folder) in message
        and message.isprintable()
        and len(message) < 600
        and refused.value.exit_code == 2
    )
    return message


def rows(model, tokenizer):
    found = continuations(
        model, tokenizer, [("a", "the cat"), ("b", "")], PROTOCOL, cell="c", run=0, decode_rows=8
    )
    assert [row["error"] for row in found] == [None] * 4
    return found


def test_a_tokenizer_without_pad_or_bos(causal):
    folder, _, tokenizer = causal
    for name, value in (("pad_token", None), ("bos_token", None)):
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    again = load_tokenizer(str(folder))
    assert again.pad_token_id is None and again.bos_token_id is None
    ids = special_ids(again, None)
    assert ids.bos is None and ids.pad == ids.start == ids.eos
    rows(load_model(str(folder)), again)


def test_a_tokenizer_without_any_special_token(causal):
    _, model, tokenizer = causal
    for name in ("pad_token", "bos_token", "eos_token"):
        setattr(tokenizer, name, None)
    model.config.eos_token_id = None
    with pytest.raises(ModelError, match="neither a BOS nor an EOS"):
        special_ids(tokenizer, model.config)


def test_a_vocabulary_larger_than_the_tokenizer(causal, tmp_path):
    """Rows of the embedding that no token has, as OPT and many others store: sampled, they are no text and no error."""
    _, model, tokenizer = causal
    model.resize_token_embeddings(len(tokenizer) + 200)
    with torch.no_grad():
        model.transformer.wte.weight[len(tokenizer) :] *= 50  # so that they are sampled
    model.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    found = rows(load_model(str(tmp_path / "padded")), load_tokenizer(str(tmp_path / "padded")))
    assert all(isinstance(row["text"], str) and row["n_tokens"] for row in found)


@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_a_missing_shard_is_named(kind, causal, tmp_path):
    folder = causal[0] if kind == "causal" else bert(tmp_path / "bert")
    opened = GPT2LMHeadModel if kind == "causal" else BertForSequenceClassification
    model = opened.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    open_it = load_model if kind == "causal" else ToxicityClassifier
    message = refusal(open_it, folder)
    assert lost.name in message and "copy the folder again" in message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"weight_map": 3}', b'{"metadata": {}}'])
def test_a_damaged_index(raw, causal):
    folder, model, _ = causal
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    (folder / "model.safetensors.index.json").write_bytes(raw)
    refusal(load_model, folder)


def test_an_index_that_names_a_file_elsewhere(causal):
    folder, _, _ = causal
    elsewhere = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(elsewhere)
    names = dict.fromkeys(load_file(elsewhere), "../no-such.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert "no-such.safetensors" in refusal(load_model, folder)


def test_an_adapter_is_not_followed_to_another_model(causal):
    folder, _, _ = causal
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "somebody/else", "peft_type": "LORA"})
    )
    assert "merge it" in refusal(load_model, folder)


@pytest.mark.parametrize("part", ["config", "tokenizer"])
@pytest.mark.parametrize("open_it", [load_model, ToxicityClassifier, ContentClassifier])
def test_code_of_the_repository_is_never_run(part, open_it, causal, tmp_path):
    folder = causal[0] if open_it is load_model else bert(tmp_path / "bert")
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n")
    name = "config.json" if part == "config" else "tokenizer_config.json"
    values = json.loads((folder / name).read_text())
    if part == "config":
        values |= {"model_type": "of_my_own", "auto_map": {
            each: "mine.Mine" for each in ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
        }}  # fmt: skip
    else:
        values |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
        (folder / "tokenizer.json").unlink()
    (folder / name).write_text(json.dumps(values))
    assert "never run" in refusal(open_it if part == "config" else load_tokenizer, folder)
    assert not (tmp_path / "ran").exists()


def test_a_known_kind_of_model_is_opened_without_the_code_beside_it(causal, tmp_path):
    """Falcon's repositories name code for a model that transformers has by itself."""
    folder, _, _ = causal
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    assert type(load_model(str(folder))) is GPT2LMHeadModel and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"\xff" * 64])
def test_a_damaged_classifier(damage, tmp_path):
    folder = bert(tmp_path / "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    assert "copy the folder again" in refusal(ToxicityClassifier, folder)


def test_a_classifier_whose_head_would_be_random_is_refused(tmp_path):
    folder = bert(tmp_path / "bert", BertModel)
    assert "lack 2 tensors" in refusal(ToxicityClassifier, folder)


def test_a_pickled_classifier_points_to_convert(tmp_path):
    folder = bert(tmp_path / "bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert f"unidetox convert {folder}" in refusal(ToxicityClassifier, folder)


def test_one_changed_number_is_seen_by_a_pinned_hash(tmp_path):
    folder = bert(tmp_path / "bert")
    pinned = ToxicityClassifier(str(folder)).sha256
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"] += 1e-3
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="not the classifier that was pinned") as refused:
        ToxicityClassifier(str(folder), sha256=pinned)
    assert refused.value.exit_code == 2
