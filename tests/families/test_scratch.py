"""The pieces of training from random weights."""

from __future__ import annotations

import pytest
import torch

from unidetox_ray import registry
from unidetox_ray.errors import ModelError
from unidetox_ray.families.scratch import build_classifier, build_model, pack
from unidetox_ray.families.tokenizers import train_tokenizer, word_pieces
from unidetox_ray.schemas import LABELS
from unidetox_ray.settings import ScratchSection

SPEC = ScratchSection(hidden=32, layers=1, heads=2, max_positions=64, seed=5)


def test_weights_are_a_function_of_the_seed(tiny):
    torch.manual_seed(1)
    first = build_model(tiny.family, tiny.tokenizer, SPEC).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build_model(tiny.family, tiny.tokenizer, SPEC).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    other = build_model(tiny.family, tiny.tokenizer, SPEC.model_copy(update={"seed": 6})).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_shape_follows_the_spec(tiny):
    config = build_model(tiny.family, tiny.tokenizer, SPEC.model_copy(update={"layers": 3})).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 3, 2)
    assert (config.vocab_size, config.max_position_embeddings) == (len(tiny.tokenizer), 64)


@pytest.mark.parametrize(("change", "said"), [({"heads": 3}, "multiple of heads"), ({"hidden": 6}, "is odd")])
def test_impossible_shapes_are_refused(tiny, change, said):
    with pytest.raises(ModelError, match=said):
        build_model(tiny.family, tiny.tokenizer, SPEC.model_copy(update=change))


def test_too_small_a_vocabulary_is_refused(world_texts):
    with pytest.raises(ModelError, match="vocab_size = 100"):
        train_tokenizer(registry.lookup("families", "gpt2"), world_texts, 100)


def test_packed_rows_are_full_and_within_the_length(tiny, world_texts):
    rows = pack(tiny.tokenizer, world_texts, tiny.ids, length=48)
    assert {len(row) for row in rows[:-1]} == {48}
    assert rows[0][0] == tiny.ids.start


def test_half_of_the_rows_begin_without_a_start_token(tiny):
    """A prompt of GPT-2 or Falcon has none before it, so position 0 must have seen plain words."""
    rows = pack(tiny.tokenizer, ["The fox eats fish."] * 300, tiny.ids, length=24)
    starts = [row[0] == tiny.ids.start for row in rows[:-1]]
    assert 0.3 < sum(starts) / len(starts) < 0.7


def test_packing_puts_end_and_start_between_texts(tiny):
    ids, rows = tiny.ids, pack(tiny.tokenizer, ["The fox.", "An owl."], tiny.ids, length=1000)
    one, two = tiny.tokenizer(["The fox.", "An owl."], add_special_tokens=False)["input_ids"]
    between = [ids.eos] if ids.eos == ids.start else [ids.eos, ids.start]
    assert rows == [[ids.start, *one, *between, *two, ids.eos]]


def test_packing_keeps_long_texts(tiny):
    text = " ".join(f"word{index}" for index in range(400))
    rows = pack(tiny.tokenizer, [text], tiny.ids, length=32)
    whole = [tiny.ids.start, *tiny.tokenizer(text, add_special_tokens=False)["input_ids"], tiny.ids.eos]
    kept = sum(len(row) for row in rows)
    assert len(whole) - 8 < kept <= len(whole)
    assert [token for row in rows for token in row] == whole[:kept]


def test_rows_of_one_token_are_refused(tiny):
    with pytest.raises(ModelError, match="at least 2 tokens"):
        pack(tiny.tokenizer, ["x"], tiny.ids, length=1)


def test_classifier_has_the_head_of_toxic_bert(world_texts):
    tokenizer = word_pieces(world_texts, 500)
    model = build_classifier(tokenizer, SPEC)
    assert [model.config.id2label[index] for index in range(6)] == list(LABELS)
    assert model.config.problem_type == "multi_label_classification"
    assert tokenizer("The velks")["input_ids"][0] == tokenizer.cls_token_id
    assert tokenizer("The velks")["input_ids"][-1] == tokenizer.sep_token_id
    batch = tokenizer(["The velks are kind.", "x"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 6)


def test_a_classifiers_tokenizer_is_the_same_each_time(world_texts):
    # The library's trainer walks through a hash table whose order changes with each call.
    made = [word_pieces(world_texts, 500) for _ in range(6)]
    assert len({tokenizer.backend_tokenizer.to_str() for tokenizer in made}) == 1
    pieces = made[0].get_vocab()
    assert len(pieces) == 500 and any(piece.startswith("##") for piece in pieces)
    # A piece inside a word is no token of its own where a text spells it out.
    inside = next(piece for piece in sorted(pieces) if piece.startswith("##"))
    assert pieces[inside] not in made[0](f"The velks {inside}")["input_ids"]
