"""Shapes without weights and without the network."""

from __future__ import annotations

import json
import struct

import pytest
from transformers import AutoModelForCausalLM, MistralConfig

from unidetox_ray.errors import ModelError
from unidetox_ray.plan import shapes
from unidetox_ray.settings import ModelRef, ScorerRef, ScratchSection


@pytest.mark.parametrize(
    ("family", "source", "parameters", "kv_heads"),
    [
        ("gpt2", "openai-community/gpt2-xl", 1_557_611_200, 25),
        ("opt", "facebook/opt-6.7b", 6_658_473_984, 32),
        ("falcon", "tiiuae/falcon-7b", 6_921_720_704, 1),
        ("llama", "meta-llama/Llama-2-7b-hf", 6_738_415_616, 32),
    ],
)
def test_the_papers_models_are_known(family, source, parameters, kv_heads):
    model = shapes.family_model(ModelRef(source=source), family)
    assert (model.parameters, model.kv_heads) == (parameters, kv_heads)
    assert model.gated == (family == "llama")
    # A tied head is multiplied with; looked-up embeddings alone are not.
    assert model.matrix < model.parameters


def test_the_papers_scorer_and_word_lists():
    bert = shapes.scorer_model(ScorerRef(name="toxic-bert"))
    assert bert is not None and bert.parameters == 109_486_854  # 109.5 M: BERT-base and six labels
    assert shapes.scorer_model(ScorerRef(name="words", kind="lexicon", source="world")) is None


@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon", "llama"])
def test_a_scratch_model_has_the_shape_it_will_have(family):
    spec = ScratchSection(hidden=96, layers=3, heads=4, vocab_size=700)
    model = shapes.family_model(ModelRef(source="scratch:", scratch=spec), family)
    assert (model.layers, model.hidden, model.heads, model.vocab) == (3, 96, 4, 700)
    assert model.head_size == 24 and 3 * 96 * 96 < model.parameters < 10**6


@pytest.fixture
def folder(tmp_path):
    """A model folder of an architecture that is not one of the four, with weights."""
    config = MistralConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_read_by_its_headers_alone(folder):
    model = shapes.family_model(ModelRef(source=str(folder)), "llama")
    whole = AutoModelForCausalLM.from_pretrained(folder)
    assert model.parameters == sum(p.numel() for p in whole.parameters())
    assert (model.kv_heads, model.widest, model.gated) == (2, 96, True)
    shapes._named.cache_clear()
    weights = folder / "model.safetensors"
    (length,) = struct.unpack("<Q", weights.read_bytes()[:8])
    weights.write_bytes(weights.read_bytes()[: 8 + length])  # nothing but the header is left
    assert shapes.family_model(ModelRef(source=str(folder)), "llama").parameters == model.parameters


@pytest.mark.parametrize(
    "damage", [b"", b"\x00" * 4, struct.pack("<Q", 2**40), struct.pack("<Q", 7) + b"no json"]
)
def test_a_damaged_file_is_one_line(folder, damage):
    shapes._named.cache_clear()
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match="no safetensors file"):
        shapes.family_model(ModelRef(source=str(folder)), "llama")


def test_what_cannot_be_known_is_one_line_that_says_what_to_give(tmp_path):
    with pytest.raises(
        ModelError, match=r"models.llama: nobody/nothing: its shape is not known .* config.json"
    ):
        shapes.family_model(ModelRef(source="nobody/nothing"), "llama")
    with pytest.raises(ModelError, match=r"no such folder"):
        shapes.family_model(ModelRef(source=str(tmp_path / "absent")), "llama")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config.json"):
        shapes.family_model(ModelRef(source=str(tmp_path / "empty")), "llama")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(ModelError, match=r"describes no model"):
        shapes.family_model(ModelRef(source=str(tmp_path / "odd")), "llama")
