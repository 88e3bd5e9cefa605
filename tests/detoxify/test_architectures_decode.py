"""Every architecture, also those that nobody here has heard of, is decoded as its own forward says, alone and contrasted."""

from __future__ import annotations

import pytest
import torch
from many_models import ARCHITECTURES, WITHOUT_CACHE, build

from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.logits import contrastive
from unidetox_ray.core.streams import uniforms
from unidetox_ray.errors import ModelError
from unidetox_ray.families.agreement import disagreement
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.recompute import RecomputeRunner
from unidetox_ray.families.runners import runner_of

#: With and without a start token, of lengths that pad each other.
PROMPTS = [[0, 20, 30], [5], [7, 8, 9, 10, 11, 12, 13]]
UNIDETOX = contrastive(alpha=0.1)


def asked(copies, steps=8):
    return {
        "uniform": uniforms(3, range(len(PROMPTS) * copies), steps), "max_new_tokens": steps, "end_ids": [2],
        "copies": copies,
    }  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_engine_agrees_with_its_slow_twin(name):
    model, changed = build(name), build(name, seed=1)
    runner = runner_of(model)
    assert isinstance(runner, RecomputeRunner) == (name in WITHOUT_CACHE)
    # Fewer rows than sequences: rows are copied, dropped and, where the runner can, given to the next prompt.
    assert decode([runner], PROMPTS, pad_id=0, rows=4, **asked(2)) == decode_slowly(
        [model], PROMPTS, **asked(2)
    )
    pair = decode([runner, runner_of(changed)], PROMPTS, pad_id=0, mixture=UNIDETOX, **asked(1))
    assert pair == decode_slowly([model, changed], PROMPTS, mixture=UNIDETOX, **asked(1))
    assert disagreement(model, runner) < 1e-4


def test_a_runner_without_a_cache_equals_one_with_a_cache():
    model = build("qwen3")
    slow = RecomputeRunner(model)
    assert decode([slow], PROMPTS, pad_id=0, rows=2, **asked(3)) == decode(
        [runner_of(model)], PROMPTS, pad_id=0, **asked(3)
    )
    with pytest.raises(NotImplementedError, match="without a cache"):
        slow.on_hidden = lambda hidden: hidden
    slow.on_hidden = None


def test_a_path_that_gives_other_numbers_is_not_taken():
    model = build("mistral")
    runner = runner_of(model)
    forward = model.forward

    def forgetful(*, input_ids, past_key_values=None, **more):
        """A library whose cache is off by something."""
        output = forward(input_ids=input_ids, past_key_values=past_key_values, **more)
        if past_key_values is not None:
            output.logits = output.logits + 0.1 * torch.arange(output.logits.shape[-1])
        return output

    model.forward = forgetful
    assert disagreement(model, runner) > 1e-2
    with torch.no_grad():
        next(model.parameters()).add_(0.0)  # written to: what is known of the model is asked anew
    assert isinstance(runner_of(model), RecomputeRunner)


def test_a_model_that_is_not_causal_is_refused_by_the_engine_too():
    import transformers as hf

    bert = hf.BertLMHeadModel(
        hf.BertConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
        )
    ).eval()
    with torch.no_grad():
        for weight in bert.parameters():
            weight.mul_(4)
    with pytest.raises(ModelError, match=r"'bert'.*cannot be decoded token by token"):
        runner_of(bert)


def test_broken_weights_are_no_matter_of_the_path():
    """A model that says NaN keeps its runner: what decodes finds it out for each sequence."""
    model = build("phi3")
    with torch.no_grad():
        next(model.parameters())[:] = float("nan")
    assert isinstance(runner_of(model), GenericRunner)
