"""What holds for every registered family: its tokenizer's rules, and a small model of its architecture."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unidetox_ray import registry
from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.lm import CachedLM, left_padded
from unidetox_ray.core.loop import LoopSettings, PlainStepper, collate
from unidetox_ray.core.streams import uniforms
from unidetox_ray.data.world import World
from unidetox_ray.families.loading import adds_bos, encode, family_of, load_model, load_tokenizer, special_ids
from unidetox_ray.families.runners import runner_of
from unidetox_ray.families.tokenizers import train_tokenizer

TEXTS = [
    "",
    " ",
    "a",
    "  two  blanks ",
    " leads",
    "ends\n",
    "tab\tand\r\nlines\n\n\nQ: 1234",
    "wörld 漢字 🦊",
]
#: name -> (bos, eos, pad, unconditional start, what stands before a text), as in the hub's tokenizers.
RULES = {
    "gpt2": ("<|endoftext|>", "<|endoftext|>", None, "<|endoftext|>", []),
    "opt": ("</s>", "</s>", "<pad>", "</s>", ["</s>"]),
    "falcon": (None, "<|endoftext|>", None, "<|endoftext|>", []),
    "llama": ("<s>", "</s>", None, "<s>", ["<s>"]),
}


def test_the_file_describes_the_family(tiny):
    family = tiny.family
    assert registry.lookup("families", family.name) is family
    assert family_of(tiny.model.config) is family
    names = [name for name, _ in tiny.model.named_modules()]
    for target in family.adapter_targets:
        assert any(name.endswith(f".{target}") for name in names), target
    parameters = [name for name, _ in tiny.model.named_parameters()]
    for pattern in family.value_matrices:
        assert sum(bool(re.fullmatch(pattern, name)) for name in parameters) == 2, "one per layer"
    assert family.licence


def test_tokenizer_has_the_rules_of_the_real_one(tiny):
    if tiny.family.name not in RULES:
        pytest.skip("a family added later states its rules in its own test")
    bos, eos, pad, start, before = RULES[tiny.family.name]
    tokenizer = tiny.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (bos, eos, pad)
    assert tokenizer.convert_ids_to_tokens(tiny.ids.start) == start
    plain = tokenizer("The velks", add_special_tokens=False)["input_ids"]
    assert tokenizer("The velks")["input_ids"] == [*tokenizer.convert_tokens_to_ids(before), *plain]
    assert adds_bos(tokenizer) == tiny.family.adds_bos == bool(before)
    if pad is None:
        assert tiny.ids.pad == tokenizer.eos_token_id


def test_fixed_ids_of_special_tokens(tiny):
    expected = {"opt": {"<s>": 0, "<pad>": 1, "</s>": 2}, "llama": {"<unk>": 0, "<s>": 1, "</s>": 2}}
    for token, index in expected.get(tiny.family.name, {}).items():
        assert tiny.tokenizer.convert_tokens_to_ids(token) == index


def test_bos_is_put_where_asked(tiny):
    plain = encode(tiny.tokenizer, "The velks", bos="never")
    assert encode(tiny.tokenizer, "The velks", bos="always") == [tiny.ids.start, *plain]
    assert encode(tiny.tokenizer, "The velks") == tiny.tokenizer("The velks")["input_ids"]
    assert encode(tiny.tokenizer, "", bos="never") == []


def test_falcon_splits_digits(world_texts):
    family = registry.lookup("families", "falcon")
    assert train_tokenizer(family, ["1234 " * 50, *world_texts], 400).tokenize("1234") == ["1", "2", "3", "4"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_exactly(tiny, text):
    ids = tiny.tokenizer(text)["input_ids"]
    assert tiny.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    assert max(ids, default=0) < len(tiny.tokenizer)


@given(text=st.text(max_size=40))
def test_any_text_comes_back_exactly(tiny, text):
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    # Special tokens are read as such; LLaMA's tokenizer writes a blank as U+2581 and so cannot tell the two apart.
    if not any(token in text for token in [*tiny.tokenizer.all_special_tokens, "\u2581"]):
        assert tiny.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_vocabularies_differ_in_content(world_texts):
    families = [registry.lookup("families", name) for name in registry.names("families")]
    sizes = {f.name: train_tokenizer(f, world_texts, 400 + 20 * i) for i, f in enumerate(families)}
    assert len({len(tokenizer) for tokenizer in sizes.values()}) == len(families)
    assert len({tuple(t("\n".join(world_texts))["input_ids"]) for t in sizes.values()}) == len(families)


def test_saved_folder_reopens_the_same(tiny, tmp_path, world_texts):
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors"}
    tokenizer, model = load_tokenizer(str(tmp_path)), load_model(str(tmp_path))
    for text in [*TEXTS, *world_texts[:50]]:
        assert tokenizer(text)["input_ids"] == tiny.tokenizer(text)["input_ids"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert special_ids(tokenizer, model.config) == tiny.ids
    assert set(model.state_dict()) == set(tiny.model.state_dict())
    ids = torch.tensor([encode(tokenizer, world_texts[0])[:40]])
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, tiny.model(input_ids=ids).logits)


def test_left_padding_changes_nothing(tiny, world_texts):
    prompts = [
        encode(tiny.tokenizer, text, bos="always")[:length]
        for text, length in zip(world_texts, (3, 9, 17), strict=False)
    ]
    ids, mask = left_padded(prompts, tiny.ids.pad)
    with torch.inference_mode():
        together = CachedLM(tiny.model).prefill(ids, mask)
        for row, prompt in enumerate(prompts):
            alone = tiny.model(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_cached_logits_equal_uncached_ones(tiny, world_texts):
    texts = [encode(tiny.tokenizer, text, bos="always")[:24] for text in world_texts[:3]]
    prompts = [text[: 4 + 5 * row] for row, text in enumerate(texts)]
    ids, mask = left_padded(prompts, tiny.ids.pad)
    cached = CachedLM(tiny.model)
    with torch.inference_mode():
        logits = cached.prefill(ids, mask)
        for step in range(6):
            for row, prompt in enumerate(prompts):
                prefix = torch.tensor([[*prompt, *texts[row][-6 : -6 + step]]])
                torch.testing.assert_close(
                    logits[row], tiny.model(input_ids=prefix).logits[0, -1], atol=1e-5, rtol=1e-5
                )
            logits = cached.step(torch.tensor([text[step - 6] for text in texts]))


def test_engine_samples_what_its_slow_twin_samples(tiny, world_texts):
    prompts = [
        encode(tiny.tokenizer, text, bos="always")[:length]
        for text, length in zip(world_texts, (2, 5, 11), strict=False)
    ]
    numbers = uniforms(7, list(range(6)), 12)
    shared = {"uniform": numbers, "max_new_tokens": 12, "end_ids": [tiny.ids.eos], "copies": 2}
    slow = decode_slowly([tiny.model], prompts, **shared)
    for runner in (runner_of(tiny.model), runner_of(tiny.model, lean=False)):
        for rows in (None, 4):
            assert decode([runner], prompts, pad_id=tiny.ids.pad, rows=rows, **shared) == slow


def test_training_lowers_the_loss(tiny, world_texts):
    model = copy.deepcopy(tiny.model)
    rows = [encode(tiny.tokenizer, text, bos="always")[:32] for text in world_texts[:8]]
    settings = LoopSettings(steps=10, lr=1e-3, batch_size=8)
    stepper, batch = (
        PlainStepper(model, settings),
        collate(rows, pad_id=tiny.ids.pad, length=None, loss_on_padding=False),
    )
    losses = [float(stepper.step(batch, 1e-3)[0]) for _ in range(10)]
    assert losses[0] == pytest.approx(torch.tensor(float(len(tiny.tokenizer))).log().item(), abs=0.5)
    assert losses[1] < losses[0] and losses[-1] < losses[0] - 0.2


def test_the_small_model_draws_no_dropout(tiny, world_texts):
    ids = torch.tensor([encode(tiny.tokenizer, world_texts[0])[:20]])
    model = copy.deepcopy(tiny.model).train()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_world_prompts_begin_at_token_borders(tiny):
    """A prompt's ids begin the ids of the prompt with a continuation, so that cutting by tokens is exact."""
    for prompt in World(0).prompts(test=4, validation=1)["prompt"]:
        ids = encode(tiny.tokenizer, prompt)
        assert encode(tiny.tokenizer, f"{prompt} kind and brave")[: len(ids)] == ids
