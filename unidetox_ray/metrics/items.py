"""Numbers over items that every cell is asked itself, questions or texts: each item is a cluster of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from unidetox_ray.metrics.base import EMPTY, Measured, Number, Tables
from unidetox_ray.metrics.stats import Floats, RatioMean, Resampler


def item_numbers(
    tables: Tables,
    name: str,
    *,
    weight: pl.Expr,
    transform: Callable[[Floats], Floats] | None = None,
    ceiling: float | None = None,
) -> Iterator[Number]:
    """transform(sum of values / sum of weights) over the items judged as `name`, one number of that name per cell.

    weight: of a judgement, as a Float64 expression over SCORES columns. transform, ceiling: see `stats.RatioMean`.
    """
    rows = tables.judged(name)
    if not rows.height:
        return
    # Sorted: the intervals do not depend on the order in which actors finished.
    items = rows.select("prompt_id").unique().sort("prompt_id").with_row_index("item")
    rows = rows.join(items, on="prompt_id", how="left", maintain_order="left").with_columns(
        weight.alias("weight")
    )
    settings = tables.settings
    resampler = Resampler(np.zeros(items.height, dtype=np.int64), settings.bootstrap_samples, settings.seed)
    for cell, part in tables.by_cell(rows):
        good = part.filter(pl.col("value").is_not_null() & pl.col("value").is_not_nan())
        empty = part.filter(pl.col("error") == EMPTY)["item"].n_unique()
        value, total = (
            np.bincount(good["item"].to_numpy(), weights=good[column].to_numpy(), minlength=items.height)[
                :, None
            ].astype(float)
            for column in ("value", "weight")
        )
        statistic = RatioMean(value, total, transform=transform, ceiling=ceiling)
        failed = items.height - empty - good["item"].n_unique()
        yield Number(cell, name, Measured(statistic, resampler, failed, items.height))
