"""Perplexity of continuations under a judge model, and of clean text under the model under test itself.

Released code U:599-618 and U:877-903. A continuation's perplexity is exp(NLL(continuation | prompt) / tokens). The
released mean leaves out values from 1e4 on without a word; here they are counted, and two averages that need no such
rule stand beside it: the median, and the pooled exp(sum of NLL / sum of tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from unidetox_ray.metrics.base import ResultSettings
from unidetox_ray.metrics.likelihood import (
    DEFAULT_BUDGET,
    accepted,
    encode,
    longest_input,
    spans,
    start_ids,
)
from unidetox_ray.metrics.stats import Floats

#: As released, and the default of `evaluate.ppl_drop_at`.
DROP_AT = ResultSettings.ppl_drop_at


class Judged(NamedTuple):
    """In input order. nll: nats, None = not judged. n: tokens scored. error: why a value is missing, else None."""

    nll: list[float | None]
    n: list[int]
    error: list[str | None]


class Perplexities(NamedTuple):
    """mean, median, pooled: NaN where nothing is left to average. kept, dropped: numbers of continuations."""

    mean: float
    median: float
    pooled: float
    kept: int
    dropped: int


def each_ppl(nll: npt.ArrayLike, n: npt.ArrayLike) -> Floats:
    """exp(nll / n) of each continuation, (N,) float64; NaN where it is not defined, inf where it overflows."""
    nats, tokens = np.asarray(nll, dtype=np.float64), np.asarray(n, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # A judge that says "no tokens" leaves nothing to divide by, whatever the sum is.
        values: Floats = np.where(tokens == 0, np.nan, np.exp(nats / np.where(tokens == 0, 1.0, tokens)))
    return values


def released_ppl(nll: npt.ArrayLike, n: npt.ArrayLike, *, drop_at: float = DROP_AT) -> tuple[float, int]:
    """(mean of the perplexities below `drop_at`, number of those at or above it); undefined ones are in neither."""
    values = each_ppl(nll, n)
    values = values[~np.isnan(values)]
    kept = values[values < drop_at]
    return float(kept.mean()) if len(kept) else float("nan"), int(len(values) - len(kept))


def median_ppl(nll: npt.ArrayLike, n: npt.ArrayLike) -> float:
    """The median of all defined perplexities, however large."""
    values = each_ppl(nll, n)
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else float("nan")


def pooled_ppl(nll: npt.ArrayLike, n: npt.ArrayLike) -> float:
    """exp(sum of NLL / sum of tokens) over the defined continuations."""
    nats, tokens = np.asarray(nll, dtype=np.float64), np.asarray(n, dtype=np.float64)
    defined = np.isfinite(nats) & (tokens != 0)
    if not defined.any() or tokens[defined].sum() == 0:
        return float("nan")
    with np.errstate(over="ignore"):
        return float(np.exp(nats[defined].sum() / tokens[defined].sum()))


def perplexities(nll: npt.ArrayLike, n: npt.ArrayLike, *, drop_at: float = DROP_AT) -> Perplexities:
    """All definitions at once on (N,) summed NLLs and token counts."""
    mean, dropped = released_ppl(nll, n, drop_at=drop_at)
    defined = int((~np.isnan(each_ppl(nll, n))).sum())
    return Perplexities(mean, median_ppl(nll, n), pooled_ppl(nll, n), defined - dropped, dropped)


def continuation_nll(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    bos: bool,
    encoding: Literal["tokens", "text"] = "tokens",
    prompt_cache: Literal["by_id", "last_seen"] = "by_id",
    token_budget: int = DEFAULT_BUDGET,
) -> Judged:
    """NLL of each continuation given its prompt under a judge; prompts and continuations are paired by position.

    "tokens": both are tokenised apart and their ids joined, so that exactly the continuation's tokens are scored.
    "text": as released (U:877-903), NLL(prompt + continuation) - NLL(prompt), each text tokenised whole; a token that
    spans the border shifts the split. With prompt_cache "last_seen" the prompt's *length* is that of the prompt last
    seen for the first time, in input order (defect 21), with "by_id" its own; this has no effect on "tokens".

    A continuation without tokens has the error "empty" (as released it has perplexity 1 when "last_seen" supplies
    another prompt's length, so there it stays in). Without BOS the first token of an empty prompt's continuation
    has nothing to be predicted from and is not counted.
    """
    accepted("ppl_encoding", encoding, ("tokens", "text"))
    accepted("ppl_prompt_cache", prompt_cache, ("by_id", "last_seen"))
    judged = Judged([None] * len(prompts), [0] * len(prompts), [None] * len(prompts))
    usable = []
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        if isinstance(prompt, str) and isinstance(continuation, str):
            usable.append(row)
        else:
            judged.error[row] = "not a text"
    score = _from_tokens if encoding == "tokens" else _from_texts
    score(
        model,
        tokenizer,
        prompts,
        continuations,
        usable,
        judged,
        bos,
        prompt_cache == "last_seen",
        token_budget,
    )
    return judged


def _from_tokens(
    model: Any, tokenizer: Any, prompts: Sequence[str], continuations: Sequence[str],
    usable: list[int], judged: Judged, bos: bool, last_seen: bool, token_budget: int,
) -> None:  # fmt: skip
    first, limit = start_ids(tokenizer, bos), longest_input(model)
    distinct = list(dict.fromkeys(prompts[row] for row in usable))
    contexts = dict(zip(distinct, encode(tokenizer, distinct), strict=True))
    added = encode(tokenizer, [continuations[row] for row in usable])
    rows, sequences, starts = [], [], []
    for row, ids in zip(usable, added, strict=True):
        sequence = [*first, *contexts[prompts[row]], *ids]
        start = max(1, len(sequence) - len(ids))
        judged.n[row] = max(0, len(sequence) - start)
        if judged.n[row] == 0:
            judged.error[row] = "empty"
        elif limit is not None and len(sequence) > limit:
            judged.error[row] = f"{len(sequence)} tokens, the judge takes {limit}"
        else:
            rows.append(row)
            sequences.append(sequence)
            starts.append(start)
    found = spans(
        model, sequences, starts, labels=[(prompts[row],) for row in rows], token_budget=token_budget
    )
    for row, nll, error in zip(rows, *found, strict=True):
        _store(judged, row, nll, error)


def _from_texts(
    model: Any, tokenizer: Any, prompts: Sequence[str], continuations: Sequence[str],
    usable: list[int], judged: Judged, bos: bool, last_seen: bool, token_budget: int,
) -> None:  # fmt: skip
    first, limit = start_ids(tokenizer, bos), longest_input(model)
    distinct = list(
        dict.fromkeys([*(prompts[r] for r in usable), *(prompts[r] + continuations[r] for r in usable)])
    )
    tokens = {text: [*first, *ids] for text, ids in zip(distinct, encode(tokenizer, distinct), strict=True)}
    # A text of one token or none has no loss at all (NaN in the released code, which drops it).
    scored = [
        text for text in distinct if len(tokens[text]) > 1 and not (limit and len(tokens[text]) > limit)
    ]
    # A prompt and what it was continued to share the prompt's tokens, all but those that the border changed.
    prompt_of = {prompts[row] + continuations[row]: prompts[row] for row in usable}
    found = spans(
        model,
        [tokens[text] for text in scored],
        [1] * len(scored),
        labels=[(prompt_of.get(text, text),) for text in scored],
        token_budget=token_budget,
    )
    nll = dict(zip(scored, zip(*found, strict=True), strict=True))
    seen: set[str] = set()
    last = ""
    for row in usable:
        prompt, whole = prompts[row], prompts[row] + continuations[row]
        if prompt not in seen:
            seen.add(prompt)
            last = prompt
        judged.n[row] = len(tokens[whole]) - len(tokens[last if last_seen else prompt])
        if judged.n[row] == 0:
            judged.error[row] = "no tokens left after the prompt's" if continuations[row] else "empty"
        elif whole in nll and prompt in nll:
            (long, failed), (short, prompt_failed) = nll[whole], nll[prompt]
            _store(judged, row, long - short, failed or prompt_failed)
        elif len(tokens[prompt]) < 2:
            judged.error[row] = "a prompt of fewer than two tokens has no loss"
        else:
            judged.error[row] = f"{len(tokens[whole])} tokens, the judge takes {limit}"


def _store(judged: Judged, row: int, nll: float, error: str | None) -> None:
    if error is not None:
        judged.error[row] = error
    elif np.isfinite(nll):
        judged.nll[row] = nll
    else:
        judged.error[row] = "the judge gave no finite likelihood"


def text_nll(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    bos: bool,
    token_budget: int = DEFAULT_BUDGET,
    max_length: int | None = None,
) -> tuple[list[float | None], list[int]]:
    """(NLL, tokens scored) of whole texts, None where there is no token to score or no text. They are cut at `max_length` tokens (BOS included) and at the model's own limit.

    The first token of a sequence is not scored: with BOS all of the text's tokens are, without it all but the first.
    """
    judged = judge_texts(model, tokenizer, texts, bos=bos, token_budget=token_budget, max_length=max_length)
    return judged.nll, judged.n


def judge_texts(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    bos: bool,
    token_budget: int = DEFAULT_BUDGET,
    max_length: int | None = None,
) -> Judged:
    """`text_nll` with the reason why a value is missing."""
    judged = Judged([None] * len(texts), [0] * len(texts), ["not a text"] * len(texts))
    usable = [row for row, text in enumerate(texts) if isinstance(text, str)]
    first = start_ids(tokenizer, bos)
    limits = [limit for limit in (max_length, longest_input(model)) if limit is not None]
    cut = min(limits) if limits else None
    rows, sequences = [], []
    for row, ids in zip(usable, encode(tokenizer, [texts[row] for row in usable]), strict=True):
        sequence = [*first, *ids][:cut]
        judged.error[row] = None if len(sequence) > 1 else "no token to score"
        if len(sequence) > 1:
            rows.append(row)
            sequences.append(sequence)
            judged.n[row] = len(sequence) - 1
    found = spans(model, sequences, [1] * len(rows), token_budget=token_budget)
    for row, nll, error in zip(rows, *found, strict=True):
        _store(judged, row, nll, error)
    return judged
