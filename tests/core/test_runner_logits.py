"""What cached models and runners read, position by position, against a full pass over each row's whole prefix."""

from __future__ import annotations

import pytest
import torch
from decode_models import OTHERS, PROMPTS, V, arguments, model

from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.lm import CachedLM, left_padded
from unidetox_ray.core.logits import Sampling
from unidetox_ray.families.generic import GenericRunner


@torch.inference_mode()
def test_cached_logits_equal_a_full_pass_with_left_padding(pair):
    base = pair[0].double()
    ids, mask = left_padded(PROMPTS, pad_id=0)
    cached = CachedLM(base)
    logits = cached.prefill(ids, mask)
    rows = [list(prompt) for prompt in PROMPTS]
    for token in (17, 3, 60, 8):
        for row, prefix in enumerate(rows):
            full = base(input_ids=torch.tensor([prefix])).logits[0, -1]
            assert torch.allclose(logits[row], full, atol=1e-9), (row, token)
            prefix.append(token)
        logits = cached.step(torch.tensor([token] * len(rows)))
    base.float()


@torch.inference_mode()
def check_logits(given, runner, atol):
    """Prefill, copies, steps and dropped rows against a full pass over each row's whole prefix."""
    runner.open(5, 12)
    lengths = torch.tensor([len(prompt) for prompt in PROMPTS])
    ids = torch.zeros((3, 7), dtype=torch.long)
    for row, prompt in enumerate(PROMPTS):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    logits = runner.prefill(ids, lengths, torch.arange(3))
    source = torch.tensor([0, 1, 2, 2, 0])
    runner.repeat(source, torch.arange(5))
    logits, rows = logits[source], [list(PROMPTS[row]) for row in source]

    def compare():
        assert logits.shape == (len(rows), runner.vocab)
        for row, prefix in zip(logits, rows, strict=True):
            full = given(input_ids=torch.tensor([prefix])).logits[0, -1]
            torch.testing.assert_close(row, full, atol=atol, rtol=0)

    compare()
    for step in range(4):
        if step == 2 and runner.shrinks:
            left = torch.tensor([1, 3, 4])
            runner.keep(left)
            rows = [rows[row] for row in left]
        tokens = [(7 * step + 11 * row + 3) % V for row in range(len(rows))]
        logits = runner.step(torch.tensor(tokens))
        for prefix, token in zip(rows, tokens, strict=True):
            prefix.append(token)
        compare()


def test_a_runners_logits_equal_a_full_pass(pair, runner):
    check_logits(pair[0], runner(pair[0]), 2e-5)
    double = pair[0].double()
    check_logits(double, runner(double), 1e-9)
    double.float()


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_any_causal_model_through_its_own_forward(name):
    given = model(name, 0)
    check_logits(given, GenericRunner(given), 1e-4)
    options = {**arguments(12, 14), "copies": 4, "sampling": Sampling(top_p=0.95)}
    free = decode([GenericRunner(given)], PROMPTS, pad_id=0, **{**options, "end_ids": []})
    options["end_ids"] = [free[0].ids[9], free[5].ids[4]]
    slow = decode_slowly([given], PROMPTS, **options)
    assert sum(sequence.ended for sequence in slow) >= 2
    for rows in (None, 5):
        assert decode([GenericRunner(given)], PROMPTS, pad_id=0, rows=rows, **options) == slow


def test_hook_before_the_head_steers_every_position(pair, runner):
    """Adding a vector to the last hidden state adds its image under the head to the logits."""
    given, steered = pair[0], runner(pair[0])
    width = given.get_output_embeddings().weight.shape[1]
    shift = torch.linspace(-1, 1, width)

    def logits():
        steered.open(2, 6)
        first = steered.prefill(torch.tensor([[4, 5], [6, 7]]), torch.tensor([2, 2]), torch.arange(2)).clone()
        return torch.cat([first, steered.step(torch.tensor([8, 9])).clone()])

    with torch.inference_mode():
        before = logits()
        steered.on_hidden = lambda hidden: hidden + shift
        after = logits()
        steered.on_hidden = None
        torch.testing.assert_close(
            after - before,
            (shift @ given.get_output_embeddings().weight.T).expand_as(before),
            atol=1e-3,
            rtol=1e-4,
        )
        assert torch.equal(logits(), before)
