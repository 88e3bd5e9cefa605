"""Filters and the contrast as properties, against definitions written out in plain Python."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unidetox_ray.core.logits import Sampling, contrast, draw, filtered, keep_top_k, keep_top_p, plausible

logits = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(2, 30)), elements=st.floats(-20, 20, width=32)
)


def kept(scores: torch.Tensor) -> list[set[int]]:
    return [set(torch.isfinite(row).nonzero().flatten().tolist()) for row in scores]


@given(logits, st.integers(1, 40))
@settings(deadline=None)
def test_top_k_keeps_the_k_largest_and_ties(values, k):
    scores = torch.from_numpy(values)
    for row, survivors in zip(values, kept(keep_top_k(scores, k)), strict=True):
        cut = sorted(row, reverse=True)[min(k, len(row)) - 1]
        assert survivors == {i for i, v in enumerate(row) if v >= cut}


@given(logits, st.floats(0.01, 1.0))
@settings(deadline=None)
def test_top_p_is_the_smallest_set_that_reaches_p(values, p):
    for row, survivors in zip(
        torch.from_numpy(values), kept(keep_top_p(torch.from_numpy(values), p)), strict=True
    ):
        probability = torch.softmax(row, -1).double()
        assert int(row.argmax()) in survivors or row[int(row.argmax())] in row[list(survivors)]
        mass = float(probability[list(survivors)].sum())
        assert mass >= p - 1e-5
        if len(survivors) > 1:  # without its least likely member the set falls short
            assert mass - float(probability[list(survivors)].min()) < p + 1e-5


def test_top_p_with_a_dominant_token_keeps_that_token_alone():
    assert kept(keep_top_p(torch.tensor([[10.0, 0.0, 0.0, 0.0]]), 0.5)) == [{0}]


@given(logits, st.floats(0.001, 1.0))
@settings(deadline=None)
def test_plausible_set_by_probabilities(values, alpha):
    scores = torch.from_numpy(values).double()
    probability = torch.softmax(scores, -1)
    ratio = probability / probability.max(-1, keepdim=True).values
    clear = (ratio - alpha).abs() > 1e-9  # the border itself is a matter of rounding
    assert torch.equal(plausible(scores, alpha)[clear], (ratio >= alpha)[clear])


def test_alpha_in_logits_is_log_alpha_below_the_best():
    scores = torch.tensor([[0.0, math.log(0.11), math.log(0.09)]])
    assert plausible(scores, 0.1).tolist() == [[True, True, False]]
    assert plausible(scores, 0.0).all()


@given(logits)
@settings(deadline=None)
def test_equal_models_give_the_uniform_distribution_over_the_plausible_set(values):
    scores = torch.from_numpy(values)
    result = torch.softmax(contrast(scores, scores, alpha=0.1), -1)
    members = plausible(scores, 0.1)
    assert torch.allclose(result, members / members.sum(-1, keepdim=True), atol=1e-6)


def test_contrast_is_the_ratio_of_probabilities_inside_the_plausible_set():
    base, toxic = torch.tensor([[2.0, 1.5, -9.0]]), torch.tensor([[0.0, 2.0, 5.0]])
    result = torch.softmax(contrast(base, toxic, alpha=0.1), -1)[0]
    ratio = torch.softmax(base, -1) / torch.softmax(toxic, -1)
    expected = torch.tensor([ratio[0, 0], ratio[0, 1], 0.0])
    assert torch.allclose(result, expected / expected.sum(), atol=1e-6)


def test_beta_reaches_from_the_base_model_to_the_pure_difference():
    torch.manual_seed(0)
    base, toxic = torch.randn(2, 9), torch.randn(2, 9)
    plain = contrast(base, toxic, alpha=0.0, beta=0.0)
    assert torch.allclose(torch.softmax(plain, -1), torch.softmax(base, -1), atol=1e-6)
    strong = contrast(base.double(), toxic.double(), alpha=0.0, beta=1e6) / 1e6
    pure = contrast(base.double(), toxic.double(), alpha=0.0)
    assert torch.allclose(strong, pure, atol=1e-5)
    # finite beta is not silently ignored, as the released code does
    assert not torch.allclose(contrast(base, toxic, alpha=0.0, beta=1.0), pure.float())


def test_bfloat16_contrast_moves_the_plausible_set():
    """Defect 3: on bf16's grid a token just outside the set gets in."""
    base = torch.tensor([[20.05, 20.05 + math.log(0.099)]])
    toxic = torch.zeros(1, 2)
    assert kept(contrast(base, toxic, alpha=0.1)) == [{0}]
    assert kept(contrast(base.bfloat16(), toxic.bfloat16(), alpha=0.1)) == [{0, 1}]


def test_default_top_k_of_the_released_code_binds_on_flat_steps():
    """Defect 2: after BOS more than 50 tokens can be plausible."""
    flat = torch.zeros(1, 200) + torch.linspace(0, 0.5, 200)
    scores = contrast(flat, torch.randn(1, 200), alpha=0.1)
    assert int(torch.isfinite(filtered(scores, Sampling())).sum()) == 200
    assert int(torch.isfinite(filtered(scores, Sampling(top_k=50))).sum()) == 50


@given(logits, st.integers(0, 2**31))
@settings(deadline=None)
def test_draws_come_from_the_kept_set_and_do_not_depend_on_other_rows(values, seed):
    scores = filtered(torch.from_numpy(values), Sampling(top_k=3, top_p=0.9))
    uniform = torch.from_numpy(np.random.default_rng(seed).random(len(values)))
    tokens = draw(scores, uniform)
    for row, token in enumerate(tokens.tolist()):
        assert math.isfinite(scores[row, token])
        assert token == int(draw(scores[row : row + 1], uniform[row : row + 1]))


def test_draw_frequencies_match_the_probabilities():
    scores = torch.log(torch.tensor([[0.1, 0.0, 0.6, 0.3]])).expand(20000, 4)
    tokens = draw(scores, torch.from_numpy(np.random.default_rng(0).random(20000)))
    share = torch.bincount(tokens, minlength=4) / 20000
    assert torch.allclose(share, torch.tensor([0.1, 0.0, 0.6, 0.3]), atol=0.015)
    assert int(draw(scores[:1], torch.tensor([0.9999999999999999], dtype=torch.float64))) == 3
    assert int(draw(scores[:1], torch.tensor([0.0], dtype=torch.float64))) == 0


def test_temperature_sharpens():
    scores = torch.tensor([[1.0, 0.0]])
    cold = torch.softmax(filtered(scores, Sampling(temperature=0.5)), -1)
    assert torch.allclose(cold, torch.softmax(scores * 2, -1))
