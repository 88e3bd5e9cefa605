"""Which runner a model gets, that it is made once, and that it follows the model's weights."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.lean import LeanRunner
from unidetox_ray.core.runner import Runner
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.runners import forget_runner, runner_of

ASKED = {"uniform": uniforms(1, range(6), 8), "max_new_tokens": 8, "end_ids": [2], "copies": 3}
PROMPTS = [[3, 4, 5], [6]]


def gpt2(**more):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=32, n_layer=2, n_head=2, n_positions=32, vocab_size=61, initializer_range=0.3, **more
        )
    ).eval()


def test_a_known_family_is_decoded_leanly_and_any_other_by_its_own_forward():
    known = runner_of(gpt2())
    assert isinstance(known, LeanRunner) and isinstance(known, Runner)
    other = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=64, vocab_size=61,
        )
    ).eval()  # fmt: skip
    assert isinstance(runner_of(other), GenericRunner) and isinstance(runner_of(other), Runner)


def test_a_runner_is_made_once_and_follows_the_weights():
    model = gpt2()
    first = runner_of(model)
    assert runner_of(model) is first
    before = decode([first], PROMPTS, pad_id=0, **ASKED)
    assert before == decode_slowly([model], PROMPTS, **ASKED)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.mul_(-1)
    after = decode([runner_of(model)], PROMPTS, pad_id=0, **ASKED)
    assert after == decode_slowly([model], PROMPTS, **ASKED) != before
    # Behind torch's back, as some trainers do it.
    model.transformer.h[1].mlp.c_fc.weight.data.mul_(-1)
    forget_runner(model)
    assert decode([runner_of(model)], PROMPTS, pad_id=0, **ASKED) == before
    forget_runner(model)
    forget_runner(model)  # nothing left to forget


def test_a_copied_or_pickled_model_has_a_runner_of_its_own():
    model = gpt2()
    first = runner_of(model)
    copied = copy.deepcopy(model)
    assert runner_of(copied) is not first and runner_of(model) is first
    sent = pickle.dumps(model)  # as Ray sends it to a worker
    assert len(sent) < 2 * sum(p.numel() * p.element_size() for p in model.parameters()) + 100_000
    loaded = pickle.loads(sent)
    assert decode([runner_of(loaded)], PROMPTS, pad_id=0, **ASKED) == decode(
        [first], PROMPTS, pad_id=0, **ASKED
    )


def test_a_forgotten_runner_does_not_keep_its_model():
    """Two large models do not fit side by side: the first goes before the second comes, without a garbage run."""
    model = gpt2()
    decode([runner_of(model)], PROMPTS, pad_id=0, **ASKED)
    forget_runner(model)
    gone = weakref.ref(model.transformer.h[0].mlp.c_fc.weight)
    del model
    assert gone() is None


def test_generic_cache_grows_past_what_was_asked_for():
    model = gpt2()
    runner = GenericRunner(model)
    runner.open(2, 3)
    with torch.inference_mode():
        runner.prefill(torch.tensor([[3, 4], [5, 0]]), torch.tensor([2, 1]), torch.arange(2))
        for token in range(6):
            logits = runner.step(torch.tensor([token, token]))
        full = model(input_ids=torch.tensor([[5, 0, 1, 2, 3, 4, 5]])).logits[0, -1]
        torch.testing.assert_close(logits[1], full, atol=2e-5, rtol=0)
        runner.step(torch.tensor([1, 1]))  # the ninth position: the second time that room is made
        whole = runner._cache.layers[0]._buffers[0].data_ptr()
        runner.step(torch.tensor([1, 1]))
        assert runner._cache.layers[0]._buffers[0].data_ptr() == whole  # room was left: nothing is copied
        with pytest.raises(ValueError, match="at once"):
            runner.prefill(torch.tensor([[3]]), torch.tensor([1]), torch.tensor([0]))
