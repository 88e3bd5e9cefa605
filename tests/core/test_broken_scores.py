"""A model that says NaN: its sequences are broken, no index leaves the vocabulary, and nobody else's text changes."""

from __future__ import annotations

import math

import pytest
import torch
from decode_models import PROMPTS, RUNNERS, UNIDETOX, arguments, model

from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.logits import NOTHING, PLAIN, Sampling, draw
from unidetox_ray.core.sampling import sample
from unidetox_ray.core.shared_cache import decode_shared_cache

EVERY = {**arguments(12, 12), "copies": 4}


def spoil(made, token: int) -> None:
    """The model breaks once it has read `token`."""
    with torch.no_grad():
        made.get_input_embeddings().weight[token] = math.nan


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("rows", [None, 1, 3, 5])
def test_what_reads_the_bad_token_breaks_and_the_others_do_not_notice(kind, rows):
    broken = model("llama-gqa", 5)
    runner = RUNNERS[kind](broken)
    free = decode([runner], PROMPTS, pad_id=0, rows=rows, **EVERY)
    drawn = next(sequence.ids[3] for sequence in free if len(sequence.ids) > 6)
    spoil(broken, drawn)
    found = decode([runner], PROMPTS, pad_id=0, rows=rows, **EVERY)
    assert found == decode_slowly([broken], PROMPTS, **EVERY)
    for place, (sequence, other) in enumerate(zip(found, free, strict=True)):
        reads = drawn in [*PROMPTS[place // 4], *other.ids[:-1]]
        assert sequence.broken == reads and not (sequence.broken and sequence.ended)
        assert sequence.ids == other.ids[: len(sequence.ids)] and (reads or sequence == other)
    assert 0 < sum(sequence.broken for sequence in found) < len(found)


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_contrast_with_a_model_that_says_nan_breaks_at_once(kind):
    pair = [model("llama-gqa", 4), model("gpt2", 5)]
    runners = [RUNNERS[kind](each) for each in pair]
    with torch.no_grad():
        pair[1].transformer.ln_f.weight.fill_(math.nan)
    for order in (runners, runners[::-1]):
        found = decode(order, PROMPTS, pad_id=0, mixture=UNIDETOX, **EVERY)
        assert all(sequence.broken and sequence.ids == [] for sequence in found)


def test_the_released_cache_breaks_alike():
    broken = model("llama-gqa", 5)
    free = decode_shared_cache([broken], PROMPTS, pad_id=0, mixture=PLAIN, **arguments(3, 12))
    spoil(broken, PROMPTS[2][3])
    found = decode_shared_cache([broken], PROMPTS, pad_id=0, mixture=PLAIN, **arguments(3, 12))
    assert found[2].broken and found[2].ids == [] and not found[2].ended
    for sequence, other in zip(found[:2], free, strict=False):
        assert sequence.broken == (PROMPTS[2][3] in other.ids[:-1])
        assert sequence.ids == other.ids[: len(sequence.ids)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_without_finite_probabilities_draws_nothing(bad):
    logits = torch.randn(4, 700, generator=torch.Generator().manual_seed(1))
    logits[2] = bad
    numbers = torch.full((4,), 0.5, dtype=torch.float64)
    for sampling in (Sampling(), Sampling(top_p=0.9), Sampling(top_k=5)):
        tokens = sample([logits], PLAIN, sampling, numbers)
        assert tokens[2] == NOTHING and bool((tokens[[0, 1, 3]] >= 0).all()) and bool((tokens < 700).all())
    assert draw(logits, numbers)[2] == NOTHING
