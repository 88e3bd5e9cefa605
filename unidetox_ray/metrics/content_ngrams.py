"""Words and n-grams of texts, and what sets those of one corpus apart from another's.

A word is a run of letters, marks and digits in lower case, apostrophes inside it included; punctuation parts words and is
no word itself. An n-gram is n words in a row of one text, joined by blanks. Pure functions on polars tables:

words    row (UInt32, the text's number), word (String), in reading order
grams    n (UInt8), ngram (String), count (UInt32, > 0), texts (UInt32, how many texts hold it)
"""

from __future__ import annotations

import numpy as np
import polars as pl

from unidetox_ray.metrics.stats import Floats

ORDERS = (1, 2, 3)
WORD = r"[\p{L}\p{M}\p{N}]+(?:'[\p{L}\p{M}\p{N}]+)*"
GRAMS = {"n": pl.UInt8, "ngram": pl.String, "count": pl.UInt32, "texts": pl.UInt32}


def word_table(texts: list[str]) -> pl.DataFrame:
    """The `words` of texts; a text without any word has no row."""
    table = pl.DataFrame({"text": texts}, schema={"text": pl.String}).with_row_index("row")
    found = pl.col("text").str.to_lowercase().str.replace_all("’", "'", literal=True).str.extract_all(WORD)
    return table.select("row", found.alias("word")).explode("word").drop_nulls("word")


def gram_rows(words: pl.DataFrame, n: int) -> pl.DataFrame:
    """Every n-gram where it stands: row (UInt32), ngram (String), in reading order. n-grams end with their text."""
    row, word = pl.col("row"), pl.col("word")
    joined = pl.concat_str([word.shift(-step) for step in range(n)], separator=" ")
    # Rows of a text are contiguous: the word n - 1 places on has to be in the same text.
    return words.select("row", pl.when(row == row.shift(1 - n)).then(joined).alias("ngram")).drop_nulls(
        "ngram"
    )


def gram_counts(words: pl.DataFrame, orders: tuple[int, ...] = ORDERS) -> pl.DataFrame:
    """`grams` of a corpus for each n of `orders`, in order of n and n-gram."""
    counted = [
        gram_rows(words, n)
        .group_by("ngram")
        .agg(pl.len().alias("count"), pl.col("row").n_unique().alias("texts"))
        .with_columns(pl.lit(n, pl.UInt8).alias("n"))
        .select(list(GRAMS))
        .cast(GRAMS)  # type: ignore[arg-type]
        for n in orders
    ]
    return pl.concat(counted).sort("n", "ngram")


def log_odds(counts: Floats, reference: Floats, prior_size: float) -> tuple[Floats, Floats]:
    """How much more a corpus uses each n-gram than the reference does: (log-odds ratio in nats, its z-score), both (V,).

    counts, reference: (V,) non-negative counts of all n-grams of one order, rare ones included. Informative Dirichlet
    prior: prior_size (> 0) pseudo-counts in all, spread as the two corpora together spread their counts. Positive = more in
    `counts`; swapping the corpora flips both signs; equal shares give 0 and 0. Of z a share of 5 % lies beyond 1.96 by
    chance alone, more where words come in bursts: a ranking, no test.
    Source: Monroe, Colaresi and Quinn (2008), "Fightin' Words", Political Analysis 16(4): the log-odds ratio of posterior means
    under an informative Dirichlet prior over the root of its approximate variance.
    """
    pooled = counts + reference
    if not pooled.sum():
        return np.zeros(len(counts)), np.zeros(len(counts))
    prior = prior_size * pooled / pooled.sum()
    ours, theirs = counts + prior, reference + prior
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(ours / (ours.sum() - ours)) - np.log(theirs / (theirs.sum() - theirs))
        # The only n-gram that either corpus has: infinite odds in both, and no difference.
        delta: Floats = np.nan_to_num(odds, nan=0.0, posinf=0.0, neginf=0.0)
        z: Floats = delta / np.sqrt(1 / ours + 1 / theirs)
    return delta, np.nan_to_num(z, nan=0.0)


def compare(
    counts: pl.DataFrame,
    reference: pl.DataFrame,
    *,
    prior_share: float = 1.0,
    min_count: int = 1,
    min_texts: int = 1,
) -> pl.DataFrame:
    """Every n-gram of two `grams` tables side by side, most of the corpus's own first within each n.

    prior_share: pseudo-counts of the prior for each n-gram of the smaller corpus (and 1 at least), so that the prior neither
    swamps a small corpus nor, being next to nothing, makes the variance of every n-gram that one side lacks boundless.
    Returns n, ngram, count, count_reference, texts, texts_reference (UInt32), log_odds, z (Float64; see `log_odds`, each n
    apart). Left out, after all were counted: n-grams with fewer than min_count uses or min_texts texts in both together.
    """
    both = counts.join(reference, on=["n", "ngram"], how="full", coalesce=True, suffix="_reference")
    both = both.with_columns(
        pl.col("count", "count_reference", "texts", "texts_reference").fill_null(0)
    ).sort("n", "ngram")
    parts = []
    for (_,), part in both.group_by("n", maintain_order=True):
        ours, theirs = (part[name].cast(pl.Float64).to_numpy() for name in ("count", "count_reference"))
        delta, z = log_odds(ours, theirs, max(1.0, prior_share * min(ours.sum(), theirs.sum())))
        parts.append(part.with_columns(pl.Series("log_odds", delta), pl.Series("z", z)))
    found = (
        pl.concat(parts)
        if parts
        else both.with_columns(log_odds=pl.lit(None, pl.Float64), z=pl.lit(None, pl.Float64))
    )
    enough = (pl.col("count") + pl.col("count_reference") >= min_count) & (
        pl.col("texts") + pl.col("texts_reference") >= min_texts
    )
    columns = ["n", "ngram", "count", "count_reference", "texts", "texts_reference", "log_odds", "z"]
    return found.filter(enough).select(columns).sort("n", "z", "ngram", descending=[False, True, False])


def jaccard(counts: pl.DataFrame, reference: pl.DataFrame, n: int = 1, top: int | None = None) -> float:
    """Shared n-grams over all n-grams of two `grams` tables, in [0, 1]; NaN where neither has any.

    top: of each only its `top` most frequent, ties in alphabetical order. Without it the value falls as corpora grow or
    differ in size, because a larger corpus has more rare words.
    """
    ours, theirs = (set(_most_frequent(table, n, top)) for table in (counts, reference))
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else float("nan")


def _most_frequent(grams: pl.DataFrame, n: int, top: int | None) -> list[str]:
    found = grams.filter(pl.col("n") == n)
    if top is not None:
        found = found.sort("count", "ngram", descending=[True, False]).head(top)
    return found["ngram"].to_list()


def tf_idf(corpora: dict[str, pl.DataFrame], texts: dict[str, int]) -> pl.DataFrame:
    """Mean TF-IDF weight of every word in every corpus.

    corpora: `words` by corpus. texts: how many texts each has. Per text the weight of a word is its count times ln(N / df), N
    texts in all and df of them with the word, divided by the text's Euclidean norm; a corpus's weight is the mean over its
    texts, 0 where a text lacks the word. So a word of every text weighs 0. Returns corpus, word (String), weight (Float64 in
    [0, 1]), texts (UInt32), heaviest first in each corpus. Source: Salton and Buckley (1988), weights "tf x idf, cosine".
    """
    shape = {"corpus": pl.String, "word": pl.String, "weight": pl.Float64, "texts": pl.UInt32}
    counted = [
        words.group_by("row", "word").agg(pl.len().alias("tf")).with_columns(pl.lit(name).alias("corpus"))
        for name, words in corpora.items()
    ]
    if not counted:
        return pl.DataFrame(schema=shape)
    total = float(sum(texts.values()))
    weights = (
        # Sorted: sums of floats, and so the ranking of words with equal weights, are the same on every run.
        pl.concat(counted)
        .sort("corpus", "row", "word")
        .with_columns(weight=pl.col("tf") * (pl.lit(total) / pl.len().over("word")).log())
        .with_columns(norm=pl.col("weight").pow(2).sum().over("corpus", "row").sqrt())
        .with_columns(
            weight=pl.when(pl.col("norm") > 0).then(pl.col("weight") / pl.col("norm")).otherwise(0.0)
        )
    )
    sizes = pl.DataFrame({"corpus": list(texts), "size": list(texts.values())})
    return (
        weights.group_by("corpus", "word", maintain_order=True)
        .agg(pl.col("weight").sum(), pl.len().cast(pl.UInt32).alias("texts"))
        .join(sizes, on="corpus", how="left", maintain_order="left")
        .with_columns((pl.col("weight") / pl.col("size")).round(12))
        .select(list(shape))
        .sort("corpus", "weight", "word", descending=[False, True, False])
    )


def cosine(weights: pl.DataFrame, corpus: str, reference: str) -> float:
    """Cosine of two corpora's mean TF-IDF weights (a table of `tf_idf`), in [0, 1]; NaN where one has no weight at all."""
    ours, theirs = (
        weights.filter(pl.col("corpus") == name).select("word", "weight") for name in (corpus, reference)
    )
    shared = ours.join(theirs, on="word", how="inner", suffix="_reference")
    a, b = shared["weight"].to_numpy(), shared["weight_reference"].to_numpy()
    norms = float(np.linalg.norm(ours["weight"].to_numpy()) * np.linalg.norm(theirs["weight"].to_numpy()))
    return min(1.0, float(a @ b) / norms) if norms > 0 else float("nan")
