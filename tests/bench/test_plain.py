"""The plain loops are right: at greedy settings they say what the engine says, and they score what the package scores."""

import pytest
import torch

from unidetox_ray.bench import plain
from unidetox_ray.bench.decode import ALPHA, contrast_texts
from unidetox_ray.bench.generate import TOP_P, continued
from unidetox_ray.bench.shapes import START, causal_model, token_rows
from unidetox_ray.core.loop import LoopSettings, PlainStepper, batch_at, train
from unidetox_ray.families.runners import runner_of
from unidetox_ray.metrics.likelihood import span_nll

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair():
    # Sharper than a fresh initialisation, so that contrast and plausible set decide something.
    models = [causal_model("tiny", CPU, torch.float32, seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        for model in models:
            for weight in model.parameters():
                weight.mul_(4.0 if weight.dim() == 2 else 1.0)
    return models


def test_greedy_contrast_is_the_same_text(pair):
    ours = contrast_texts([runner_of(model) for model in pair], 3, 24, top_k=1)
    theirs = plain.contrast_texts(*pair, START, 3, 24, alpha=ALPHA, batch=2, top_k=1)
    assert ours == theirs
    assert [len(ids) for ids in ours] == [24, 24, 24]
    assert len(set(ours[0])) > 3  # not one token over and over
    assert ours != contrast_texts([runner_of(model) for model in reversed(pair)], 3, 24, top_k=1)


def test_greedy_continuations_are_the_same_text(pair):
    prompts = token_rows(5, 3, 17, 900, seed=3)
    assert len({len(prompt) for prompt in prompts}) > 2
    ours = continued(runner_of(pair[0]), prompts, 8, copies=2, rows=4, top_k=1)
    theirs = plain.continued_prompts(pair[0], prompts, 2, 8, top_p=TOP_P, top_k=1)
    assert ours == theirs and len(ours) == 10


def test_sampled_texts_have_the_asked_length_on_both_sides(pair):
    prompts = token_rows(3, 3, 9, 900)
    ours = continued(runner_of(pair[0]), prompts, 6, copies=4)
    theirs = plain.continued_prompts(pair[0], prompts, 4, 6, top_p=TOP_P)
    assert {len(ids) for ids in ours} == {len(ids) for ids in theirs} == {6}
    assert len(ours) == len(theirs) == 12 and len(set(map(tuple, ours))) > 6


def test_one_at_a_time_likelihoods_are_the_batched_ones(pair):
    sequences = token_rows(7, 4, 30, 900)
    starts = [1 + index % 3 for index in range(7)]
    assert plain.span_nlls(pair[0], sequences, starts) == pytest.approx(
        span_nll(pair[0], sequences, starts), rel=1e-5
    )


def test_the_eager_loop_learns_what_the_stepper_learns():
    rows = token_rows(12, 16, 16, 900)
    settings = LoopSettings(steps=3, lr=1e-3, batch_size=4, schedule="constant")
    eager = plain.EagerTraining(causal_model("tiny", CPU, torch.float32), 1e-3)
    theirs = [eager.step(batch_at(step, rows, 0, settings).input_ids) for step in range(3)]
    ours = train(PlainStepper(causal_model("tiny", CPU, torch.float32), settings), rows, 0, settings).loss
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert theirs[0] != theirs[2]
