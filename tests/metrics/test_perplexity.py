"""Perplexity: definitions against loops, batches against one text at a time, each as-released option and its effect."""

import math

import numpy as np
import pytest
import torch

from unidetox_ray.errors import ConfigError, ModelError
from unidetox_ray.metrics import likelihood
from unidetox_ray.metrics.perplexity import (
    continuation_nll,
    each_ppl,
    median_ppl,
    perplexities,
    pooled_ppl,
    released_ppl,
    text_nll,
)


def loss(model, ids, start):
    """Sum of -log p(id | all before) from position `start`, one position at a time, without padding."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(-table[i - 1, ids[i]].item() for i in range(start, len(ids)))


def encode(tokenizer, text, bos):
    return ([tokenizer.bos_token_id] if bos else []) + tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def pairs(odd_texts):
    prompts = [text for text in odd_texts if len(text) > 5][:12]
    return [prompts[i % 12] for i in range(60)], [odd_texts[-1 - i] for i in range(60)]


# --- definitions on arrays


def test_definitions_equal_loops():
    generator = np.random.default_rng(0)
    n = generator.integers(1, 20, 500)
    nll = n * generator.exponential(4.0, 500)
    nll[::50] = np.nan
    n[7], nll[3] = 0, 0.0
    kept, dropped, everything = [], 0, []
    for nats, tokens in zip(nll, n, strict=True):
        if math.isnan(nats) or tokens == 0:
            continue
        value = math.exp(nats / tokens)
        everything.append(value)
        if value < 1e4:
            kept.append(value)
        else:
            dropped += 1
    found = perplexities(nll, n)
    assert dropped > 10
    assert found.mean == pytest.approx(sum(kept) / len(kept))
    assert (found.dropped, found.kept) == (dropped, len(kept))
    assert found.median == pytest.approx(float(np.median(everything)))
    good = ~np.isnan(nll) & (n > 0)
    assert found.pooled == pytest.approx(math.exp(nll[good].sum() / n[good].sum()))


def test_the_drop_is_at_and_above_the_limit():
    assert released_ppl([math.log(9999.9), math.log(1e4) + 1e-9], [1, 1]) == (pytest.approx(9999.9), 1)
    assert released_ppl([math.log(50), math.log(20)], [1, 1], drop_at=40) == (pytest.approx(20), 1)
    assert released_ppl([0.0, math.log(0.5)], [1, 1], drop_at=1.0) == (pytest.approx(0.5), 1)


def test_overflow_is_dropped_and_counted_not_raised():
    mean, dropped = released_ppl([5000.0, 2.0], [1, 1])
    assert mean == pytest.approx(math.exp(2.0)) and dropped == 1
    assert each_ppl([5000.0], [1])[0] == math.inf


def test_nothing_to_average_is_nan():
    assert math.isnan(released_ppl([], [])[0]) and math.isnan(released_ppl([math.nan], [3])[0])
    assert math.isnan(median_ppl([], [])) and math.isnan(pooled_ppl([1.0], [0]))


def test_a_null_value_of_a_table_is_no_perplexity():
    assert np.isnan(each_ppl([None], [4])).all()


# --- likelihoods under models


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("budget", [1, 150, 16384])
def test_tokens_batched_equals_one_at_a_time(model, tokenizer, pairs, bos, budget):
    prompts, continuations = pairs
    nll, n, error = continuation_nll(model, tokenizer, prompts, continuations, bos=bos, token_budget=budget)
    for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        context, added = encode(tokenizer, prompt, bos), encode(tokenizer, continuation, False)
        assert n[i] == len(added)
        if added:
            assert nll[i] == pytest.approx(loss(model, context + added, len(context)), rel=1e-5, abs=1e-5)
        else:
            assert nll[i] is None and error[i] == "empty"


@pytest.mark.parametrize("bos", [True, False])
def test_text_batched_equals_one_at_a_time(model, tokenizer, pairs, bos):
    prompts, continuations = pairs
    nll, n, error = continuation_nll(
        model, tokenizer, prompts, continuations, bos=bos, encoding="text", token_budget=200
    )
    for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        context, whole = encode(tokenizer, prompt, bos), encode(tokenizer, prompt + continuation, bos)
        assert n[i] == len(whole) - len(context)
        if n[i]:
            assert nll[i] == pytest.approx(
                loss(model, whole, 1) - loss(model, context, 1), rel=1e-5, abs=2e-5
            )
        else:
            assert nll[i] is None and error[i]


def test_a_token_across_the_border_shifts_the_released_split(gpt2, tokenizer):
    """Encoded as one text, " on" is a token of the prompt's last letter too; exact continuation tokens are not."""
    whole = "the cat sat on the mat."
    cuts = [
        i
        for i in range(1, len(whole))
        if len(encode(tokenizer, whole, False))
        < sum(len(encode(tokenizer, t, False)) for t in (whole[:i], whole[i:]))
    ]
    prompt, continuation = whole[: cuts[0]], whole[cuts[0] :]
    exact, released = (
        continuation_nll(gpt2, tokenizer, [prompt], [continuation], bos=True, encoding=e)
        for e in ("tokens", "text")
    )
    assert exact.n == [len(encode(tokenizer, continuation, False))]
    assert released.n[0] < exact.n[0]


def test_last_seen_takes_the_length_of_the_prompt_last_seen_for_the_first_time(gpt2, tokenizer):
    """Defect 21: prompts A B A. The third row subtracts A's loss, but B's length."""
    first, second, added = (
        "the cat sat",
        "é é a b c NA null é é a b c",
        " on the mat. the cat sat on the mat. é é é",
    )
    rows = ([first, second, first], [added] * 3)
    right, released = (
        continuation_nll(gpt2, tokenizer, *rows, bos=True, encoding="text", prompt_cache=cache)
        for cache in ("by_id", "last_seen")
    )
    assert released.nll == pytest.approx(right.nll)
    assert released.n[:2] == right.n[:2] and right.n[2] == right.n[0]
    lengths = [len(encode(tokenizer, text, True)) for text in (first + added, second)]
    assert released.n[2] == lengths[0] - lengths[1] != right.n[2]
    assert released_ppl(released.nll, released.n)[0] != pytest.approx(released_ppl(right.nll, right.n)[0])


def released_loop(model, tokenizer, prompts, generations):
    """The released measurement written from its description (reference/unidetox.md 2 and 4.4, rows 21 to 24)."""
    losses, kept, last_length = {}, [], 0
    for prompt, generation in zip(prompts, generations, strict=True):
        if prompt not in losses:
            ids = encode(tokenizer, prompt, True)
            losses[prompt], last_length = loss(model, ids, 1), len(ids)
        ids = encode(tokenizer, generation, True)
        if len(ids) == last_length:
            continue  # 0 tokens: not a number, or infinite
        value = math.exp(min(700.0, (loss(model, ids, 1) - losses[prompt]) / (len(ids) - last_length)))
        if value < 1e4:
            kept.append(value)
    return sum(kept) / len(kept)


def test_as_released_from_texts_to_the_number(model, tokenizer, pairs):
    prompts, continuations = pairs
    nll, n, _ = continuation_nll(
        model, tokenizer, prompts, continuations, bos=True, encoding="text", prompt_cache="last_seen"
    )
    whole = [p + c for p, c in zip(prompts, continuations, strict=True)]
    assert released_ppl(nll, n)[0] == pytest.approx(released_loop(model, tokenizer, prompts, whole), rel=1e-4)


def test_bos_changes_the_value(gpt2, tokenizer):
    rows = (["the cat"], [" sat on"])
    with_bos, without = (continuation_nll(gpt2, tokenizer, *rows, bos=bos) for bos in (True, False))
    assert with_bos.n == without.n and with_bos.nll != pytest.approx(without.nll)


def test_an_empty_prompt_without_bos_cannot_predict_the_first_token(gpt2, tokenizer):
    found = continuation_nll(gpt2, tokenizer, ["", ""], ["the cat sat on é", "é"], bos=False)
    ids = encode(tokenizer, "the cat sat on é", False)
    assert found.n[0] == len(ids) - 1 and found.nll[0] == pytest.approx(loss(gpt2, ids, 1), abs=1e-4)
    one_token = continuation_nll(gpt2, tokenizer, [""], ["Q"], bos=False)
    assert one_token.nll == [None] and one_token.error == ["empty"]


def test_bad_rows_leave_the_others_alone(gpt2, tokenizer):
    prompts, continuations = ["the cat", None, "the cat", "the cat"], [" é sat", " sat", 3, " é" * 400]
    for encoding in ("tokens", "text"):
        found = continuation_nll(gpt2, tokenizer, prompts, continuations, bos=True, encoding=encoding)
        assert found.nll[1:] == [None, None, None] and found.error[0] is None
        assert found.error[1] == found.error[2] == "not a text" and "the judge takes 256" in found.error[3]
        alone = continuation_nll(gpt2, tokenizer, ["the cat"], [" é sat"], bos=True, encoding=encoding)
        assert found.nll[0] == pytest.approx(alone.nll[0], abs=1e-4) and found.n[0] == alone.n[0] > 1
    assert continuation_nll(gpt2, tokenizer, [], [], bos=True).nll == []


def test_a_judge_without_finite_logits_gives_null(tokenizer, gpt2):
    weight = gpt2.transformer.ln_f.bias
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(math.nan)
        found = continuation_nll(gpt2, tokenizer, ["a"], [" b"], bos=True)
        assert text_nll(gpt2, tokenizer, ["a b"], bos=True)[0] == [None]
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert found.nll == [None] and "finite" in found.error[0]


def test_unknown_options_are_named(gpt2, tokenizer):
    with pytest.raises(ConfigError, match="accepted: tokens, text"):
        continuation_nll(gpt2, tokenizer, ["a"], ["b"], bos=True, encoding="words")
    with pytest.raises(ConfigError, match="accepted: by_id, last_seen"):
        continuation_nll(gpt2, tokenizer, ["a"], ["b"], bos=True, prompt_cache="id")


@pytest.mark.parametrize("bos", [True, False])
def test_texts_batched_equal_one_at_a_time(model, tokenizer, odd_texts, bos):
    nll, n = text_nll(model, tokenizer, odd_texts, bos=bos, token_budget=300, max_length=40)
    for text, value, count in zip(odd_texts, nll, n, strict=True):
        ids = encode(tokenizer, text, bos)[:40]
        if len(ids) > 1:
            assert count == len(ids) - 1
            assert value == pytest.approx(loss(model, ids, 1), rel=1e-5, abs=1e-5)
        else:
            assert value is None and count == 0
    assert max(n) == 39


def test_texts_are_cut_at_the_models_own_limit(gpt2, tokenizer):
    nll, n = text_nll(gpt2, tokenizer, ["é " * 500, None], bos=True)
    assert n == [255, 0] and nll[0] > 0 and nll[1] is None


def test_a_small_chunk_of_logits_gives_the_same_sums(monkeypatch, model, tokenizer, odd_texts):
    whole, _ = text_nll(model, tokenizer, odd_texts[:40], bos=True)
    monkeypatch.setattr(likelihood, "CHUNK_VALUES", 3 * len(tokenizer))
    chunked, _ = text_nll(model, tokenizer, odd_texts[:40], bos=True)
    assert [v for v in chunked if v is not None] == pytest.approx(
        [v for v in whole if v is not None], abs=1e-6
    )


def test_a_start_without_context_is_refused(gpt2):
    with pytest.raises(ValueError, match="cannot be scored from 0"):
        likelihood.span_nll(gpt2, [[1, 2]], [0])
    assert likelihood.span_nll(gpt2, [[1, 2]], [2]) == [0.0]


def test_no_bos_and_no_eos_is_named(tokenizer):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    with pytest.raises(ModelError, match="neither a BOS nor an EOS"):
        likelihood.start_ids(bare, True)
    assert likelihood.start_ids(bare, False) == []
