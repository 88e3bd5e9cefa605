"""Length, variety and repetition of a corpus's texts: plain counts without a model."""

from __future__ import annotations

import zlib
from typing import Any

import polars as pl

from unidetox_ray.metrics.content_ngrams import ORDERS, gram_rows

REPEATED_ORDERS = (1, 2, 3, 4)


def spread(values: pl.Series) -> dict[str, float | None]:
    """mean, median, least and most of numbers, and their total; all None without any."""
    if not len(values):
        return dict.fromkeys(("mean", "median", "least", "most", "total"))
    reals = values.cast(pl.Float64)
    return {
        "mean": float(reals.mean()),  # type: ignore[arg-type]
        "median": float(reals.median()),  # type: ignore[arg-type]
        "least": float(reals.min()),  # type: ignore[arg-type]
        "most": float(reals.max()),  # type: ignore[arg-type]
        "total": float(reals.sum()),
    }


def lengths(texts: list[str], words: pl.DataFrame, tokens: list[int] | None = None) -> dict[str, Any]:
    """`spread` of characters, words and tokens of each text. words: see `content_ngrams`. tokens: None = not known."""
    counted = words.group_by("row").len()
    per_text = (
        pl.DataFrame({"row": range(len(texts))}, schema={"row": pl.UInt32})
        .join(counted, on="row", how="left")
        .select(pl.col("len").fill_null(0))["len"]
    )
    return {
        "characters": spread(pl.Series(texts, dtype=pl.String).str.len_chars()),
        "words": spread(per_text),
        "tokens": None if tokens is None else spread(pl.Series(tokens, dtype=pl.Int64)),
    }


def distinct(words: pl.DataFrame, first: int | None = None) -> dict[str, float | None]:
    """Distinct n-grams over all n-grams of the whole corpus, in (0, 1], by n ("1", "2", "3"); None without any.

    first: only of the first so many words. The share falls as a corpus grows, so that corpora of different sizes are
    compared at the size of the smallest. Source: Li et al. (2016), over the corpus and not over a prompt's continuations.
    """
    part = words if first is None else words.head(first)
    found: dict[str, float | None] = {}
    for n in ORDERS:
        grams = gram_rows(part, n)["ngram"]
        found[str(n)] = grams.n_unique() / len(grams) if len(grams) else None
    return found


def repeated(words: pl.DataFrame) -> dict[str, float | None]:
    """Share of a text's n-grams that it already held, 1 - distinct / all, in [0, 1), by n ("1" to "4").

    The mean over the texts that are long enough to hold one; None where none is. Source: Welleck et al. (2020), "seq-rep-n".
    """
    found: dict[str, float | None] = {}
    for n in REPEATED_ORDERS:
        per_text = gram_rows(words, n).group_by("row").agg(share=1 - pl.col("ngram").n_unique() / pl.len())
        found[str(n)] = float(per_text["share"].mean()) if per_text.height else None  # type: ignore[arg-type]
    return found


def duplicates(texts: list[str], words: pl.DataFrame) -> dict[str, int]:
    """How many texts repeat an earlier one: `exact`, and `same_words`, where only case, blanks or punctuation may differ.

    Texts without any word are told apart by `exact` alone.
    """
    sequences = words.group_by("row").agg(pl.col("word"))
    joined = sequences.select(pl.col("word").list.join(" "))["word"]
    return {"exact": len(texts) - len(set(texts)), "same_words": len(joined) - joined.n_unique()}


def compression_ratio(texts: list[str]) -> float | None:
    """Bytes of all texts, one a line, over their bytes when deflated (level 9); None without a byte. Higher = more repetitive.

    Deflate looks back 32 KiB, so that the ratio hardly depends on the size of a corpus; 2 to 3 is usual for English prose.
    Source: the measure that Shaib et al. (2024) recommend for the diversity of generated text.
    """
    raw = "\n".join(texts).encode("utf-8", "replace")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else None
