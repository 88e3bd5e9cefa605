# mypy: disable-error-code="no-untyped-def"
"""From one to three models' logits to the next token in one kernel, a program a row; no (B, V) intermediate.

Every pass over the vocabulary recomputes the scores from the logits, which lie in the L2 cache by then: the maximum,
the sum, and the running sum up to the drawn token; one more for model 0's maximum where a plausible set is asked for.
A nucleus or top-k border is found by bisection between scores that occur in the row: each pass adds up what lies
above a value and snaps to the nearest scores on both sides, so it ends on an exact border after about as many passes
as the number of distinct scores has binary digits, and ties with the last kept token stay (`core.logits`).

Not run on a GPU yet (see `core/kernels/compiler.py`). Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unidetox_ray.core import sampling as plain
from unidetox_ray.core.kernels.compiler import jit, on_device_of, power_of_two, tl
from unidetox_ray.core.logits import Mixture, Sampling

_BLOCK = 8192
#: Scores so far (times the temperature) below the best have probability 0 in float32.
_DEPTH = 104.0


@jit
def _scores(
    first, second, third, start, V, w0, w1, w2, cut,
    MODELS: tl.constexpr, CUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of scores in float32, -inf outside the allowed set and the vocabulary."""
    column = start + tl.arange(0, BLOCK)
    inside = column < V
    base = tl.load(first + column, mask=inside, other=float("-inf")).to(tl.float32)
    score = base * w0
    if MODELS > 1:
        score = score + tl.load(second + column, mask=inside, other=0.0).to(tl.float32) * w1
    if MODELS > 2:
        score = score + tl.load(third + column, mask=inside, other=0.0).to(tl.float32) * w2
    if CUT:
        inside = inside & (base >= cut)
    # -inf minus -inf: a token that two models forbid stays forbidden.
    return tl.where(inside & (score == score), score, float("-inf"))


@jit
def _peak(
    first, second, third, V, w0, w1, w2, cut,
    MODELS: tl.constexpr, CUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        best = tl.maximum(best, _scores(first, second, third, start, V, w0, w1, w2, cut, MODELS, CUT, BLOCK))
    return tl.max(best, 0)


@jit
def _mass(score, peak, inverse_temperature):
    """exp of the scaled distance from the peak; 0 for what is forbidden."""
    return tl.where(score > float("-inf"), tl.exp((score - peak) * inverse_temperature), 0.0)


@jit
def _total(
    first, second, third, V, w0, w1, w2, cut, peak, floor, inverse_temperature,
    MODELS: tl.constexpr, CUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The mass of the scores that are at least `floor`, added up block by block in float64."""
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, V, BLOCK):
        score = _scores(first, second, third, start, V, w0, w1, w2, cut, MODELS, CUT, BLOCK)
        mass = tl.where(score >= floor, _mass(score, peak, inverse_temperature), 0.0)
        total += tl.sum(mass.to(tl.float64), 0)
    return total


@jit
def _look(
    first, second, third, V, w0, w1, w2, cut, peak, floor, inverse_temperature, middle,
    MODELS: tl.constexpr, CUT: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Above `middle`: how much (mass or number) and the least score; at or below it: the greatest score."""
    above = tl.zeros((BLOCK,), tl.float32)
    least = tl.full((BLOCK,), float("inf"), tl.float32)
    greatest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        score = _scores(first, second, third, start, V, w0, w1, w2, cut, MODELS, CUT, BLOCK)
        score = tl.where(score >= floor, score, float("-inf"))
        higher = score > middle
        if COUNT:
            above += tl.where(higher, 1.0, 0.0)
        else:
            above += tl.where(higher, _mass(score, peak, inverse_temperature), 0.0)
        least = tl.minimum(least, tl.where(higher, score, float("inf")))
        greatest = tl.maximum(greatest, tl.where(higher, float("-inf"), score))
    return tl.sum(above, 0), tl.min(least, 0), tl.max(greatest, 0)


@jit
def _border(
    first, second, third, V, w0, w1, w2, cut, peak, floor, inverse_temperature, amount, low,
    MODELS: tl.constexpr, CUT: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The least score that is kept: a score is out when what lies above it reaches `amount`.

    low: a score that may be taken for out if anything is. Returns `floor` where everything above low is kept.
    """
    above, following, _ = _look(
        first,
        second,
        third,
        V,
        w0,
        w1,
        w2,
        cut,
        peak,
        floor,
        inverse_temperature,
        low,
        MODELS,
        CUT,
        BLOCK,
        COUNT,
    )
    kept = peak  # the most likely token is always in
    everything = above < amount
    if everything:
        following = peak
    # Scores below `following` are out, `kept` is in, and both occur in the row.
    while following < kept:
        middle = following + (kept - following) * 0.5
        middle = tl.where(middle < kept, middle, following)
        above, least, greatest = _look(
            first, second, third, V, w0, w1, w2, cut, peak, floor, inverse_temperature, middle,
            MODELS, CUT, BLOCK, COUNT,
        )  # fmt: skip
        following = tl.where(above >= amount, least, following)
        kept = tl.where(above >= amount, kept, greatest)
    return tl.where(everything, floor, kept)


@jit
def _sample(
    first, second, third, row_0, row_1, row_2, uniform, tokens, V, w0, w1, w2,
    log_alpha, nucleus, log_nucleus_rest, inverse_temperature, top_k, top_p, log_top_p_rest, depth,
    MODELS: tl.constexpr, ALPHA: tl.constexpr, NUCLEUS: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first += row * row_0
    second += row * row_1
    third += row * row_2
    CUT: tl.constexpr = ALPHA or NUCLEUS
    lowest = tl.full((), float("-inf"), tl.float32)
    cut = lowest
    if CUT:
        base_peak = _peak(first, first, first, V, 1.0, 0.0, 0.0, lowest, 1, False, BLOCK)
        if NUCLEUS:
            base_total = _total(
                first, first, first, V, 1.0, 0.0, 0.0, lowest, base_peak, lowest, 1.0, 1, False, BLOCK
            ).to(tl.float32)
            # Tokens at (1 - p) / V of the total each cannot reach 1 - p of it together.
            low = base_peak + log_nucleus_rest + tl.log(base_total)
            cut = _border(
                first, first, first, V, 1.0, 0.0, 0.0, lowest, base_peak, lowest, 1.0, nucleus * base_total, low,
                1, False, BLOCK, False,
            )  # fmt: skip
        if ALPHA:
            cut = tl.maximum(cut, base_peak + log_alpha)
    peak = _peak(first, second, third, V, w0, w1, w2, cut, MODELS, CUT, BLOCK)
    floor = lowest
    if TOP_K:
        floor = _border(
            first, second, third, V, w0, w1, w2, cut, peak, floor, inverse_temperature, top_k, peak - depth,
            MODELS, CUT, BLOCK, True,
        )  # fmt: skip
    total = _total(
        first, second, third, V, w0, w1, w2, cut, peak, floor, inverse_temperature, MODELS, CUT, BLOCK
    )
    if TOP_P:
        amount = total.to(tl.float32)
        low = peak + (log_top_p_rest + tl.log(amount)) / inverse_temperature
        floor = _border(
            first, second, third, V, w0, w1, w2, cut, peak, floor, inverse_temperature, amount * top_p, low,
            MODELS, CUT, BLOCK, False,
        )  # fmt: skip
        total = _total(
            first, second, third, V, w0, w1, w2, cut, peak, floor, inverse_temperature, MODELS, CUT, BLOCK
        )
    threshold = tl.load(uniform + row) * total
    running = tl.full((), 0.0, tl.float64)
    token = tl.full((), -1, tl.int32)
    last = tl.full((), -1, tl.int32)
    start = tl.full((), 0, tl.int32)
    while (start < V) & (token < 0):
        score = _scores(first, second, third, start, V, w0, w1, w2, cut, MODELS, CUT, BLOCK)
        mass = tl.where(score >= floor, _mass(score, peak, inverse_temperature), 0.0)
        column = start + tl.arange(0, BLOCK)
        last = tl.maximum(last, tl.max(tl.where(mass > 0.0, column, -1), 0))
        wide = mass.to(tl.float64)
        added = running + tl.sum(wide, 0)
        if added > threshold:
            hit = (running + tl.cumsum(wide, 0) > threshold) & (mass > 0.0)
            place = tl.min(tl.where(hit, column, V), 0)
            token = tl.where(place < V, place, token)
        running = added
        start += BLOCK
    # The last token with mass where rounding left the threshold at the total; NOTHING in a row without any mass.
    token = tl.where(token >= 0, token, last)
    tl.store(tokens + row, token.to(tl.int64))


def why_not_fused(logits: Sequence[Tensor], mixture: Mixture) -> str | None:
    """Why the kernel does not do this mixture; None: it does."""
    if len(logits) > 3:
        return f"{len(logits)} models; the kernel mixes at most 3"
    if mixture.dtype != torch.float32:
        return f"the mixture is computed in {mixture.dtype}; the kernel computes in float32"
    if any(rows.dtype not in (torch.float32, torch.bfloat16, torch.float16) for rows in logits):
        return "logits of a type that the kernel does not read"
    return None


def sample(
    logits: Sequence[Tensor],
    mixture: Mixture,
    sampling: Sampling,
    uniform: Tensor,
    *,
    block: int = _BLOCK,
) -> Tensor:
    """`core.sampling.sample`: mixture, temperature, top-k, top-p, then inversion by the row's number.

    logits: (B, V) per model, rows may be strided (a stride that is a multiple of 8 loads fastest). uniform: (B,)
    float64 in [0, 1), on the same device. block: columns of one turn, a power of two.
    Returns (B,) int64. Equals the plain sampler but for roundings of about 1e-7 of the unit interval. What
    `why_not_fused` names is done by the plain sampler. A row without one finite score gives NOTHING.
    ValueError: as many weights as models are needed.
    """
    if len(logits) != len(mixture.weights):
        raise ValueError(f"{len(logits)} models, but the mixture has {len(mixture.weights)} weights")
    if why_not_fused(logits, mixture) is not None:
        return plain.sample(logits, mixture, sampling, uniform)
    given = [rows if rows.stride(1) == 1 else rows.contiguous() for rows in logits]
    models, (rows, vocabulary) = len(given), given[0].shape
    given += [given[0]] * (3 - models)
    weights = (*mixture.weights, 0.0, 0.0)[:3]
    alpha, nucleus = mixture.alpha or 0.0, 1.0 if mixture.nucleus is None else mixture.nucleus
    tokens = torch.empty(rows, dtype=torch.long, device=given[0].device)
    with on_device_of(tokens):
        _sample[(rows,)](
            *given, *(tensor.stride(0) for tensor in given), uniform, tokens, vocabulary, *weights,
            math.log(alpha) if alpha else 0.0, nucleus, _log_rest(nucleus, vocabulary), 1.0 / sampling.temperature,
            float(sampling.top_k), sampling.top_p, _log_rest(sampling.top_p, vocabulary),
            _DEPTH * sampling.temperature,
            MODELS=models, ALPHA=alpha > 0.0, NUCLEUS=nucleus < 1.0,
            TOP_K=0 < sampling.top_k < vocabulary, TOP_P=sampling.top_p < 1.0,
            BLOCK=min(block, power_of_two(vocabulary, 16)), num_warps=16 if block >= _BLOCK else 4,
            # Every pass must compute the same scores: no fused multiply-add in one that another lacks.
            enable_fp_fusion=False,
        )  # fmt: skip
    return tokens


def _log_rest(p: float, vocabulary: int) -> float:
    """log((1 - p) / V); 0 where nothing is cut."""
    return math.log((1.0 - p) / vocabulary) if p < 1.0 else 0.0
