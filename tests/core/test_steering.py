"""Steering: which models run with which weights, what is refused, and the one model that several make for likelihoods."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import FAMILIES, V, model_of

from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.logits import PLAIN, Mixture, Sampling
from unidetox_ray.core.steered import SteeredModel
from unidetox_ray.core.steering import Steering, check_agreement, weighted
from unidetox_ray.core.streams import uniforms
from unidetox_ray.errors import ModelError
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.runners import forget_runner, runner_of
from unidetox_ray.metrics.likelihood import span_nll, spans
from unidetox_ray.metrics.reader import Reader

IDS = torch.tensor([[5, 17, 80, 3, 44, 9, 61, 2]])


def changed(model, seed):
    """A copy with every weight moved, as a fine-tune would."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3 * weight.std().nan_to_num(0.1))
    return other.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def three(request):
    base = model_of(request.param).eval()
    return base, changed(base, 1), changed(base, 2)


def logits_of(model, ids=IDS):
    with torch.inference_mode():
        return model(input_ids=ids).logits


def test_weights_of_one_model_add_up_and_what_cancels_does_not_run(three):
    base, expert, anti = three
    assert weighted([(base, 1.0), (base, 2.0), (anti, -2.0)]).mixture.weights == (3.0, -2.0)
    assert weighted([(base, 1.0), (expert, 2.0), (expert, -2.0)]).models == (base,)
    assert weighted([(base, 1.0), (expert, 0.0), (anti, -0.0)]).mixture == PLAIN
    # Model 0 truncates, whatever its weight.
    steering = weighted([(base, 1.0), (base, -1.0), (anti, 1.0)], nucleus=0.5)
    assert steering.models == (base, anti) and steering.mixture.weights == (0.0, 1.0)


def test_a_steering_that_does_not_add_up_is_refused(three):
    base, expert, _ = three
    with pytest.raises(ValueError, match="2 models, but the mixture has 1 weights"):
        Steering((base, expert))
    with pytest.raises(ValueError, match="stands twice"):
        Steering((base, base), Mixture((1.0, 1.0)))
    with pytest.raises(ValueError, match="1 hooks"):
        Steering((base, expert), Mixture((1.0, 1.0)), (None,))


def test_memory_beside_the_base_counts_shared_weights_once(three):
    base, expert, anti = three
    size = sum(weight.numel() * 4 for weight in anti.parameters())
    assert weighted([(base, 1.0)]).extra_bytes() == 0
    assert weighted([(base, 1.0), (expert, 2.0), (anti, -2.0)]).extra_bytes() == 2 * size
    twin = copy.deepcopy(base)
    for mine, its in zip(twin.parameters(), base.parameters(), strict=True):
        mine.data = its.data
    assert weighted([(base, 1.0), (twin, 1.0)]).extra_bytes() == 0


def test_truncation_is_for_sampling_only(three):
    steering = weighted([(three[0], 2.0), (three[1], -1.0)], alpha=0.3, nucleus=0.7)
    assert steering.scoring == Mixture((2.0, -1.0))
    assert steering.mixture == Mixture((2.0, -1.0), alpha=0.3, nucleus=0.7)
    asked = Sampling(temperature=0.7, top_k=5, top_p=0.9)
    assert steering.sampling(asked) == Sampling(temperature=0.7, top_k=5, top_p=1.0)
    assert weighted([(three[0], 1.0)], alpha=0.3).sampling(asked) == asked


class Words:
    """The part of a tokenizer that is compared."""

    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: number for number, word in enumerate(self.words)}


def test_vocabularies_are_compared_token_by_token(three):
    base, toxic, _ = three
    models = {"base": base, "toxic": toxic}
    check_agreement(models, {"base": Words("a", "b"), "toxic": Words("a", "b")})
    with pytest.raises(
        ModelError, match=r"the toxic model's.*token 'b' has id 2 there and id 1 in the base"
    ) as error:
        check_agreement(models, {"base": Words("a", "b", "c"), "toxic": Words("a", "c", "b")})
    assert "\n" not in str(error.value)
    with pytest.raises(
        ModelError, match=r"token 'c' has no id there and id 2 in the base \(2 and 3 tokens\)"
    ):
        check_agreement(models, {"base": Words("a", "b", "c"), "toxic": Words("a", "b")})


def test_embeddings_of_other_sizes_are_refused(three):
    wider = copy.deepcopy(three[0])
    wider.resize_token_embeddings(V + 7)
    words = {"base": Words("a"), "toxic": Words("a")}
    with pytest.raises(
        ModelError, match=f"the toxic model gives {V + 7} logits and the base model {V}; take"
    ):
        check_agreement({"base": three[0], "toxic": wider}, words)


def test_logits_are_the_weighted_sum(three):
    base, expert, anti = three
    steered = SteeredModel(weighted([(base, 1.0), (expert, 2.0), (anti, -2.0)], nucleus=0.5))
    by_hand = logits_of(base) + 2 * (logits_of(expert) - logits_of(anti))
    torch.testing.assert_close(logits_of(steered), by_hand, atol=1e-4, rtol=1e-5)
    assert logits_of(steered).isfinite().all()
    with torch.inference_mode():
        last = steered(input_ids=IDS, logits_to_keep=2).logits
    torch.testing.assert_close(last, by_hand[:, -2:], atol=1e-4, rtol=1e-5)


def test_left_padding_changes_no_logit(three):
    steered = SteeredModel(weighted([(three[0], 3.0), (three[2], -2.0)]))
    padded, mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS], dim=1), torch.ones(1, 11).long()
    mask[:, :3] = 0
    with torch.inference_mode():
        found = steered(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(found[:, 3:], logits_of(steered), atol=1e-4, rtol=1e-4)


def test_cached_logits_equal_uncached_ones(three):
    steered = SteeredModel(weighted([(three[0], 3.0), (three[2], -2.0)]))
    with torch.inference_mode():
        first = steered(IDS[:, :5], use_cache=True)
        cache, found = first.past_key_values, [first.logits]
        for place in range(5, 8):
            step = steered(IDS[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), logits_of(steered), atol=1e-4, rtol=1e-4)


def test_scoring_reads_shared_prefixes_once_and_the_head_apart(three):
    """The reader finds a body, a head and a cache in it; a fall-back would be correct, but several times as slow."""
    base, expert, anti = three
    steered = SteeredModel(weighted([(base, 1.0), (expert, 2.0), (anti, -2.0)], nucleus=0.9))
    reader = Reader(steered)
    assert reader.splits
    assert reader.shares, reader.why_not
    texts = [[1, 20, 30, 40, 7, 8], [1, 20, 30, 40, 9], [1, 20, 30, 40, 9, 50, 60]]
    starts = [4, 4, 5]
    wanted = []
    for text, start in zip(texts, starts, strict=True):
        logp = logits_of(steered, torch.tensor([text]))[0].double().log_softmax(-1)
        wanted.append(-sum(float(logp[place - 1, text[place]]) for place in range(start, len(text))))
    shared = spans(steered, texts, starts, labels=[("one",)] * 3)
    assert shared.error == [None] * 3
    assert shared.nll == pytest.approx(wanted, rel=1e-4)
    assert span_nll(steered, texts, starts) == pytest.approx(wanted, rel=1e-4)


def test_models_in_half_precision_are_compared_in_float32(three):
    base, anti = (copy.deepcopy(model).bfloat16() for model in (three[0], three[2]))
    steered = SteeredModel(weighted([(base, 3.0), (anti, -2.0)]))
    by_hand = 3 * logits_of(base).float() - 2 * logits_of(anti).float()
    assert torch.equal(logits_of(steered), by_hand) and by_hand.dtype == torch.float32
    reader = Reader(steered)
    assert reader.splits and reader.shares, reader.why_not


def test_models_of_other_depth_and_width_steer_too():
    base, small = model_of("gpt2", 3).eval(), model_of("opt", 1).eval()
    steered = SteeredModel(weighted([(base, 2.0), (small, -1.0)]))
    reader = Reader(steered)
    assert reader.splits and reader.shares, reader.why_not
    by_hand = 2 * logits_of(base) - logits_of(small)
    torch.testing.assert_close(logits_of(steered), by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_a_model_that_cannot_be_taken_apart_is_read_whole(name):
    """gemma2 caps its logits; both keep a window of positions only."""
    base = model_of(name).eval()
    steered = SteeredModel(weighted([(base, 2.0), (changed(base, 1), -1.0)]))
    reader = Reader(steered)
    assert not reader.shares and reader.splits == (name != "gemma2")
    logp = logits_of(steered)[0].double().log_softmax(-1)
    wanted = -sum(float(logp[place - 1, int(IDS[0, place])]) for place in range(1, 8))
    assert span_nll(steered, [IDS[0].tolist()], [1]) == pytest.approx([wanted], rel=1e-4)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "own forward"])
def test_a_hook_acts_alike_in_decoding_and_in_scoring_and_leaves_nothing_behind(three, lean):
    base, anti = three[0], three[2]
    plain = logits_of(base)
    shift = torch.randn(32, generator=torch.Generator().manual_seed(3))

    def hook(hidden):
        return hidden + shift

    steering = Steering((base, anti), Mixture((1.5, -0.5)), (hook, None))
    steered = SteeredModel(steering)
    by_hand = 1.5 * logits_of(SteeredModel(Steering((base,), PLAIN, (hook,)))) - 0.5 * logits_of(anti)
    assert not torch.allclose(by_hand, 1.5 * plain - 0.5 * logits_of(anti), atol=0.1)
    torch.testing.assert_close(logits_of(steered), by_hand, atol=1e-4, rtol=1e-4)
    assert Reader(steered).splits  # body and head make the same

    made = []

    def runner(model):
        made.append(runner_of(model) if lean else GenericRunner(model))
        return made[-1]

    how = {"uniform": uniforms(1, range(4), 8), "max_new_tokens": 8, "end_ids": []}
    with steering.runners(runner) as runners:
        found = decode(runners, [[5, 17], [80]], pad_id=0, mixture=steering.mixture, copies=2, **how)
    assert [each.on_hidden for each in made] == [None, None]
    assert found == decode_slowly([steered], [[5, 17], [80]], copies=2, **how)
    assert found != decode_slowly([base, anti], [[5, 17], [80]], mixture=steering.mixture, copies=2, **how)
    assert torch.equal(logits_of(base), plain)
    for model in (base, anti):
        forget_runner(model)
