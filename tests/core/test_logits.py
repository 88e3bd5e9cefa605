"""Filters and the contrast as properties, against definitions written out in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unidetox_ray.core.inversion import crossing, nucleus_border
from unidetox_ray.core.logits import (
    PLAIN,
    Mixture,
    Sampling,
    contrast,
    contrastive,
    draw,
    filtered,
    in_nucleus,
    keep_top_k,
    keep_top_p,
    plausible,
)
from unidetox_ray.core.sampling import sample

shapes = st.tuples(st.integers(1, 4), st.integers(2, 30))
logits = arrays(np.float32, shapes, elements=st.floats(-20, 20, width=32))
#: Few different values, so that most are tied.
tied = arrays(np.float32, shapes, elements=st.integers(-3, 3).map(float))
#: As a mask or a filter leaves them: -inf almost anywhere, one finite entry a row at least.
masked = arrays(
    np.float32,
    shapes,
    elements=st.one_of(st.just(-math.inf), st.integers(-3, 3).map(float), st.floats(-9, 9, width=32)),
).map(lambda rows: np.where(np.isfinite(rows).any(1, keepdims=True), rows, np.float32(0)))


def kept(scores: torch.Tensor) -> list[set[int]]:
    return [set(torch.isfinite(row).nonzero().flatten().tolist()) for row in scores]


@given(logits, st.integers(1, 40))
@settings(deadline=None)
def test_top_k_keeps_the_k_largest_and_ties(values, k):
    scores = torch.from_numpy(values)
    for row, survivors in zip(values, kept(keep_top_k(scores, k)), strict=True):
        cut = sorted(row, reverse=True)[min(k, len(row)) - 1]
        assert survivors == {i for i, v in enumerate(row) if v >= cut}


def nucleus(row: np.ndarray, p: float) -> tuple[set[int], bool]:
    """The definition on a plainly sorted row, in float64; and whether rounding may decide where it ends."""
    weight = np.exp(row.astype(np.float64) - row.max())
    weight /= weight.sum()
    mass, last = 0.0, None
    close = False
    for index in sorted(range(len(row)), key=lambda i: -weight[i]):
        close |= abs(mass - p) < 1e-5
        if last is not None and mass >= p:
            break
        mass, last = mass + weight[index], weight[index]
    near = {
        i
        for i in range(len(row))
        if abs(weight[i] - last) < 1e-6 * last and row[i] != row[weight >= last].min()
    }
    return {i for i in range(len(row)) if weight[i] >= last and np.isfinite(row[i])}, close or bool(near)


@given(st.one_of(logits, tied, masked), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=300)
def test_top_p_is_the_smallest_set_that_reaches_p_and_its_ties(values, p):
    found = keep_top_p(torch.from_numpy(values), p)
    for row, survivors in zip(values, kept(found), strict=True):
        expected, close = nucleus(row, p)
        assert close or survivors == expected
        assert int(row.argmax()) in survivors
    assert torch.equal(found[torch.isfinite(found)], torch.from_numpy(values)[torch.isfinite(found)])


@given(tied, st.floats(0.01, 0.99), st.integers(0, 2**31))
@settings(deadline=None)
def test_top_p_does_not_depend_on_the_order_of_tied_tokens(values, p, seed):
    scores = torch.from_numpy(values)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(scores.shape[1]))
    clear = torch.tensor([not nucleus(row, p)[1] for row in values])
    assert torch.equal(keep_top_p(scores[:, order], p)[clear], keep_top_p(scores, p)[:, order][clear])


def test_top_p_in_a_large_vocabulary_the_short_way_and_the_long_one():
    """Peaked rows end among their largest values, flat ones do not; each row is on its own, bit for bit."""
    draws = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.0, 0.05, 0.5, 2.0, 2.8, 4.0, 9.0]).unsqueeze(1)
    scores = torch.randn(7, 50257, generator=draws) * scale
    scores[5, 100:] = -math.inf
    for p in (0.05, 0.5, 0.9, 0.999):
        inside = in_nucleus(scores, p)
        sizes = inside.sum(-1).tolist()
        for row in range(7):
            ordered = torch.softmax(scores[row].double(), -1).sort(descending=True).values
            ahead = ordered.cumsum(0) - ordered
            exact = int((ahead < p).sum())
            # float32 probabilities leave the border's place open by a few of its most similar tokens
            assert row == 0 or abs(sizes[row] - exact) <= max(2, exact // 2000), (row, p)
            assert torch.equal(in_nucleus(scores[row : row + 1], p)[0], inside[row])
        assert sizes[0] == 50257  # all tied
        assert torch.equal(in_nucleus(scores.flip(0), p).flip(0), inside)


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


def test_one_token_rows():
    scores = torch.tensor([[-3.0], [0.0]])
    assert torch.equal(filtered(scores, Sampling(0.5, 1, 0.1)), scores / 0.5)
    for how in (Sampling(), Sampling(top_k=1), Sampling(top_p=0.3)):
        numbers = torch.tensor([0.0, 0.9999999999999999], dtype=torch.float64)
        assert sample([scores], PLAIN, how, numbers).tolist() == draw(scores, numbers).tolist() == [0, 0]


SAMPLINGS = [Sampling(), Sampling(0.7), Sampling(top_k=3), Sampling(top_p=0.8), Sampling(1.5, 7, 0.9)]
ENDS = [0.0, 5e-324, 0.5, 1.0 - 2**-53]


@given(
    masked, st.sampled_from(SAMPLINGS), st.one_of(st.sampled_from(ENDS), st.floats(0, 1, exclude_max=True))
)
@settings(deadline=None, max_examples=300)
def test_no_draw_picks_what_is_out(values, how, number):
    """Neither the fast draw nor the plain one, at the ends of the unit interval either."""
    scores = torch.from_numpy(values)
    numbers = torch.full((len(values),), number, dtype=torch.float64)
    inside = torch.isfinite(filtered(scores, how))
    for tokens in (sample([scores], PLAIN, how, numbers), draw(filtered(scores, how), numbers)):
        assert inside.gather(1, tokens.unsqueeze(1)).all()


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 700)),
        elements=st.sampled_from([0, 0, 1, 2, 8]),
    )
)
@settings(deadline=None)
def test_crossing_is_where_a_running_sum_exceeds_the_bound(mass):
    """Small whole numbers, whose sums are exact in any order."""
    rows = torch.from_numpy(mass)
    for share in (0.0, 0.25, 0.5, 1.0):
        found = crossing(rows, lambda total, share=share: total * share).tolist()
        for row, index in zip(mass.astype(np.float64), found, strict=True):
            over = np.flatnonzero(row.cumsum() > share * row.sum())
            last = np.flatnonzero(row)
            assert index == (over[0] if len(over) else last[-1] if len(last) else 0)


@given(logits, logits, st.sampled_from(SAMPLINGS), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_fast_draws_are_the_plain_ones_row_by_row(first, second, how, seed):
    size = (min(len(first), len(second)), min(first.shape[1], second.shape[1]))
    given_logits = [torch.from_numpy(values[: size[0], : size[1]].copy()) for values in (first, second)]
    numbers = torch.from_numpy(np.random.default_rng(seed).random(size[0]))
    for mixture in (contrastive(alpha=0.1), Mixture((1.0, 0.5), nucleus=0.9)):
        scores = filtered(mixture.scores(given_logits), how)
        plain, fast = draw(scores, numbers), sample(given_logits, mixture, how, numbers)
        cumulative = torch.softmax(scores, -1).double().cumsum(-1)
        away = (cumulative - numbers.unsqueeze(1)).abs().amin(-1) > 1e-6  # else rounding may decide
        assert torch.equal(plain[away], fast[away])
        for row in range(size[0]):
            alone = sample(
                [rows[row : row + 1] for rows in given_logits], mixture, how, numbers[row : row + 1]
            )
            assert int(alone) == int(fast[row])


def test_draws_do_not_depend_on_the_batch_bit_for_bit():
    """The same rows among many, alone and in another order, in both sizes of vocabulary."""
    for size in (900, 50257):
        rows = torch.randn(33, size, generator=torch.Generator().manual_seed(1)) * 2
        chosen = torch.arange(33).flip(0)[::2]
        for p in (0.3, 0.9):
            probability = torch.softmax(rows, -1)
            border = nucleus_border(probability, p)
            assert torch.equal(nucleus_border(torch.softmax(rows[chosen], -1), p), border[chosen])
            assert torch.equal(nucleus_border(torch.softmax(rows[4:5], -1), p), border[4:5])
        # Numbers on the very borders of the rows' tokens, where the last bit decides.
        edges = torch.softmax(rows, -1).double().cumsum(-1)[:, size // 3]
        tokens = sample([rows], PLAIN, Sampling(), edges)
        assert torch.equal(sample([rows[chosen]], PLAIN, Sampling(), edges[chosen]), tokens[chosen])
        assert sample([rows[4:5]], PLAIN, Sampling(), edges[4:5]).tolist() == tokens[4:5].tolist()


@given(logits, st.floats(0.05, 0.95))
@settings(deadline=None)
def test_a_nucleus_is_taken_before_the_models_are_mixed(values, p):
    base = torch.from_numpy(values)
    other = base.flip(-1)
    mixed = Mixture((1.0, 2.0), nucleus=p).scores([base, other])
    assert kept(mixed) == kept(keep_top_p(base, p))
    inside = torch.isfinite(mixed)
    assert torch.equal(mixed[inside], (base + other * 2.0)[inside])


def test_mixtures_that_make_no_sense_are_refused():
    for wrong in ({"weights": ()}, {"weights": (1.0, math.inf)}, {"alpha": 1.5}, {"nucleus": 0.0}):
        with pytest.raises(ValueError, match="mixture"):
            Mixture(**wrong)
    with pytest.raises(ValueError, match="2 models"):
        PLAIN.scores([torch.zeros(1, 2)] * 2)
