"""What holds for every registered decoding method on every family."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from decoding_models import SPEC, decoding_methods, with_words_swapped

from unidetox_ray import registry
from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.logits import PLAIN, Sampling
from unidetox_ray.core.steered import SteeredModel
from unidetox_ray.core.steering import Steering
from unidetox_ray.core.streams import uniforms
from unidetox_ray.data.world import World
from unidetox_ray.errors import ModelError, UnidetoxError
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.runners import runner_of
from unidetox_ray.families.scratch import build_model
from unidetox_ray.metrics.mmlu import quiz_answers
from unidetox_ray.metrics.perplexity import text_nll

NEW = 10
COPIES = 3


@pytest.fixture(params=decoding_methods())
def method(request):
    return registry.lookup("methods", request.param)


def decoded(
    kit, steering, prompts=None, *, sampling=PLAIN, numbers=None, maker=runner_of, rows=None, copies=COPIES
):
    prompts = kit.prompts if prompts is None else prompts
    how = {} if sampling is PLAIN else {"sampling": steering.sampling(sampling)}
    with steering.runners(maker) as runners:
        return decode(
            runners,
            prompts,
            uniform=uniforms(11, range(len(prompts) * copies), NEW) if numbers is None else numbers,
            max_new_tokens=NEW,
            end_ids=[kit.ids.eos],
            pad_id=kit.ids.pad,
            mixture=steering.mixture,
            copies=copies,
            rows=rows,
            **how,
        )


def ids_of(kit):
    return torch.tensor([kit.prompts[1]])


def test_at_neutral_strength_it_is_the_base_model_bit_for_bit(kit, method):
    steering = kit.steering(method, **{method.strength: method.neutral})
    with torch.inference_mode():
        assert torch.equal(SteeredModel(steering)(ids_of(kit)).logits, kit.base(input_ids=ids_of(kit)).logits)
    # A method's own nucleus is the base cell's top-p where the two are equal.
    asked = Sampling(top_p=steering.mixture.nucleus or 0.9)
    assert decoded(kit, steering, sampling=asked) == decoded(kit, Steering((kit.base,)), sampling=asked)
    assert steering.extra_bytes() == 0, "nothing steers, yet a second model is in memory"


def test_at_its_default_strength_it_is_not(kit, method):
    base, steering = Steering((kit.base,)), kit.steering(method)
    with torch.inference_mode():
        steered = SteeredModel(steering)(ids_of(kit)).logits.log_softmax(-1)
        plain = kit.base(input_ids=ids_of(kit)).logits.log_softmax(-1)
    assert not torch.allclose(steered, plain, atol=0.05)
    assert decoded(kit, steering) != decoded(kit, base)


def test_a_batch_is_its_rows(kit, method):
    steering = kit.steering(method)
    whole = decoded(kit, steering)
    for rows in (1, 4):
        assert decoded(kit, steering, rows=rows) == whole
    numbers = uniforms(11, range(len(kit.prompts) * COPIES), NEW)
    alone = [
        decoded(kit, steering, [kit.prompts[row // COPIES]], numbers=numbers[row : row + 1], copies=1)[0]
        for row in range(len(whole))
    ]
    assert alone == whole


def test_neighbours_and_their_padding_do_not_matter(kit, method):
    steering = kit.steering(method)
    numbers = uniforms(11, range(len(kit.prompts)), NEW)
    whole = decoded(kit, steering, numbers=numbers, copies=1)
    backwards = decoded(kit, steering, kit.prompts[::-1], numbers=numbers.flip(0), copies=1)
    assert backwards[::-1] == whole
    # The model's own forward pads on the left, as far as the longest prompt.
    assert decoded(kit, steering, numbers=numbers, copies=1, maker=GenericRunner) == whole


def test_cached_decoding_equals_uncached(kit, method):
    steering = kit.steering(method)
    models = [SteeredModel(alone) for alone in steering.alone()]
    slow = decode_slowly(
        models, kit.prompts, uniform=uniforms(11, range(len(kit.prompts) * COPIES), NEW), max_new_tokens=NEW,
        end_ids=[kit.ids.eos], mixture=steering.mixture, copies=COPIES,
    )  # fmt: skip
    assert decoded(kit, steering) == slow
    assert decoded(kit, steering, maker=GenericRunner) == slow


def test_a_seed_gives_the_same_text_however_often_it_is_opened(kit, method):
    first = decoded(kit, kit.steering(method))
    assert decoded(kit, kit.steering(method)) == first
    other = uniforms(12, range(len(kit.prompts) * COPIES), NEW)
    assert decoded(kit, kit.steering(method), numbers=other) != first


def test_left_padding_does_not_matter_to_its_scores(kit, method):
    steered = SteeredModel(kit.steering(method))
    ids = ids_of(kit)
    padded = torch.cat([torch.full((1, 4), kit.ids.pad), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    with torch.inference_mode():
        found = steered(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        torch.testing.assert_close(found[:, 4:], steered(ids).logits, atol=1e-3, rtol=1e-4)


def test_the_scores_it_draws_from_are_its_likelihoods_within_the_truncation(kit, method):
    """Decoding and scoring must not be two methods."""
    steering = kit.steering(method)
    steered = SteeredModel(steering)
    lengths = torch.tensor([len(prompt) for prompt in kit.prompts])
    ids = torch.full((len(lengths), int(lengths.max())), kit.ids.pad)
    for row, prompt in enumerate(kit.prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    with torch.inference_mode(), steering.runners(runner_of) as runners:
        logits = []
        for runner in runners:
            runner.open(len(lengths), 16)
            logits.append(runner.prefill(ids, lengths, torch.arange(len(lengths))).clone())
        scores = steering.mixture.scores(logits)
        for row, prompt in enumerate(kit.prompts):
            whole = steered(torch.tensor([prompt])).logits[0, -1]
            drawn = scores[row].isfinite()
            assert drawn.any()
            torch.testing.assert_close(scores[row][drawn], whole[drawn], atol=1e-3, rtol=1e-4)


def test_quiz_and_perplexity_are_finite(kit, method):
    steered, tokenizer = SteeredModel(kit.steering(method)), kit.tokenizers["base"]
    texts = World(0).clean()["text"].to_list()[:6]
    nll, counts = text_nll(steered, tokenizer, texts, bos=True, max_length=40)
    assert all(value is not None and 0 < value < 1e4 for value in nll) and min(counts) > 1
    quiz = World(0).mmlu()
    some = quiz.filter(quiz["subject"] == quiz["subject"][0])
    answers = quiz_answers(steered, tokenizer, some)
    assert answers.error == [None] * len(answers.error)
    assert set(answers.correct) <= {0.0, 1.0}


def test_a_model_of_another_vocabulary_is_refused(kit, method):
    needed = sorted(method.needs - {"fit"})
    if not needed:
        pytest.skip(f"{method.name} opens no second model")
    wrong = with_words_swapped(kit.tokenizers["base"])
    assert len(wrong) == len(kit.tokenizers["base"])
    swapped = copy.copy(kit)
    swapped.tokenizers = {**kit.tokenizers, needed[0]: wrong}
    with pytest.raises(
        ModelError, match=f"the {needed[0]} model's tokenizer is not the base model's"
    ) as error:
        swapped.steering(method)
    assert "\n" not in str(error.value) and isinstance(error.value, UnidetoxError)


def test_settings_refuse_what_they_do_not_know(method):
    with pytest.raises(ValueError, match="strenght"):
        method.settings.model_validate({"strenght": 1})
    with pytest.raises(ValueError, match=method.strength):
        method.settings.model_validate({method.strength: "nan"})


@pytest.fixture(params=[name for name in decoding_methods() if registry.lookup("methods", name).fit])
def fitted(request):
    return registry.lookup("methods", request.param)


def test_a_fit_is_the_same_whenever_it_is_made_and_says_what_it_trained(kit, fitted, tmp_path):
    settings = kit.settings(fitted)
    facts = fitted.fit(kit.base, kit.tokenizers["base"], kit.texts, settings, tmp_path, "cpu", 0)
    assert facts["trainable_parameters"] > 0 and json.loads(json.dumps(facts)) == facts
    first = {path.name: path.read_bytes() for path in kit.fit(fitted, settings).rglob("*") if path.is_file()}
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first
    assert any(name.endswith(".safetensors") for name in first)


def test_a_fit_knows_no_setting_that_only_steers(fitted):
    assert fitted.strength not in fitted.fit_settings
    assert fitted.fit_settings <= set(fitted.settings.model_fields)


def test_a_fit_of_a_model_of_another_width_is_refused(kit, fitted):
    wide = build_model(
        registry.lookup("families", kit.family),
        kit.tokenizers["base"],
        SPEC.model_copy(update={"hidden": 48}),
    )
    settings = kit.settings(fitted)
    roles = {"base", *(fitted.needed_for(settings) - {"fit"})}
    with pytest.raises(ModelError) as error:
        fitted.steering(
            settings,
            {role: wide if role == "base" else kit.models[role] for role in roles},
            {role: kit.tokenizers[role] for role in roles},
            kit.fit(fitted, settings),
        )
    assert "the fit in" in str(error.value) and "\n" not in str(error.value)
