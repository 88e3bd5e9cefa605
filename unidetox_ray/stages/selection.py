"""Which texts of a pool are kept: the least toxic share, short and repetitive ones left out, and what that was like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl

from unidetox_ray.errors import DataError, StageError
from unidetox_ray.methods.filtered import Filtered

#: What is known of each text of a pool. score: toxicity in [0, 1], null with the reason in `error`.
RANKED: dict[str, Any] = {
    "text_id": pl.Int64,
    "n_tokens": pl.Int64,
    "repetition": pl.Float64,
    "score": pl.Float64,
    "error": pl.String,
}
#: Why a text is not kept, in the order of asking. ranked_out: others are less toxic.
REASONS = ("blank", "unscored", "too_short", "repetitive", "ranked_out")
BLANK = "no text but blanks"
BINS = 20


def repetition(ids: Sequence[int]) -> float:
    """1 - distinct / all runs of three tokens, in [0, 1); 0.0 for fewer than three tokens."""
    runs = list(zip(ids, ids[1:], ids[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def rank(pool: pl.DataFrame, settings: Filtered) -> pl.DataFrame:
    """`pool` (columns of RANKED) with the column `reason`, null for the texts that are kept.

    Kept: the floor(keep x all texts) with the lowest scores among those with a score, enough tokens and little
    repetition, or all of those where they are fewer. Of equal scores the lower text_id is kept.
    """
    score = pl.col("score")
    excuse = (
        pl.when(score.is_null() & (pl.col("error") == BLANK)).then(pl.lit("blank"))
        .when(score.is_null() | score.is_nan()).then(pl.lit("unscored"))
        .when(pl.col("n_tokens") < settings.min_tokens).then(pl.lit("too_short"))
        .when(pl.col("repetition") > settings.max_repetition).then(pl.lit("repetitive"))
        .otherwise(pl.lit(None, pl.String))
    )  # fmt: skip
    table = pool.with_columns(reason=excuse)
    kept = (
        table.filter(pl.col("reason").is_null()).sort("score", "text_id").head(wanted(pool.height, settings))
    )
    out = pl.col("reason").is_null() & ~pl.col("text_id").is_in(kept["text_id"].implode())
    return table.with_columns(reason=pl.when(out).then(pl.lit("ranked_out")).otherwise(pl.col("reason")))


def wanted(texts: int, settings: Filtered) -> int:
    """floor(keep x texts), of the decimal number that the setting is written as: 0.29 of 100 is 29."""
    return int(Fraction(str(settings.keep)) * texts)


def facts_of(ranked: pl.DataFrame, settings: Filtered) -> dict[str, Any]:
    """What the manifest says of one `rank`. histogram: of the kept and of the dropped texts' scores, `BINS` bins of
    [0, 1]; texts without a score are in `dropped` alone. threshold: the highest score that is kept, null without any."""
    kept = ranked.filter(pl.col("reason").is_null())
    dropped = ranked.filter(pl.col("reason").is_not_null())
    counts = dict(dropped.group_by("reason").len().iter_rows())
    ranked_out = dropped.filter(pl.col("reason") == "ranked_out")["score"]
    return {
        "texts": ranked.height,
        "wanted": wanted(ranked.height, settings),
        "kept": kept.height,
        "dropped": {reason: counts.get(reason, 0) for reason in REASONS},
        "threshold": kept["score"].max(),
        "lowest_ranked_out": ranked_out.min(),
        "histogram": {
            "edges": [edge / BINS for edge in range(BINS + 1)],
            "kept": _histogram(kept["score"]),
            "dropped": _histogram(dropped["score"]),
        },
    }


def _histogram(scores: pl.Series) -> list[int]:
    counts, _ = np.histogram(scores.drop_nulls().drop_nans().to_numpy(), bins=BINS, range=(0.0, 1.0))
    return [int(count) for count in counts]


def refuse_empty(ranked: pl.DataFrame, facts: Mapping[str, Any], where: str) -> None:
    """StageError where no text could be scored, DataError where none is kept for another reason."""
    if facts["kept"]:
        return
    dropped = facts["dropped"]
    if ranked.height and dropped["unscored"] == ranked.height:
        raise StageError(f"{where}: none of {ranked.height} texts could be scored: {ranked['error'][0]}")
    told = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    raise DataError(
        f"{where}: keep = the lowest {facts['wanted']} of {ranked.height} texts leaves none ({told}); "
        "take more texts, a larger keep, a smaller min_tokens or a larger max_repetition"
    )
