"""The perplexity of continuations as numbers with intervals: the definitions of `perplexity`, over clusters of prompts.

`ppl` is the mean below `evaluate.ppl_drop_at`, run by run; `ppl_median` and `ppl_pooled` use every continuation;
`ppl_dropped` and `ppl_empty` count those that a mean cannot hold. Released code U:877-903.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from unidetox_ray.metrics.base import EMPTY, Measured, Metric, Number, Tables, judges
from unidetox_ray.metrics.perplexity import each_ppl
from unidetox_ray.metrics.stats import Floats, Median, RatioMean, Statistic


def measured(tables: Tables) -> Iterator[Number]:
    """`ppl` and its companions of every cell under each judge."""
    rows = tables.judged("ppl")
    if not rows.height:
        return
    named = judges(rows, tables.settings.judge, "judge")
    rows = rows.join(tables.space.clusters.select("prompt_id", "cluster"), on="prompt_id")
    rows = rows.with_columns(
        (pl.col("error") == EMPTY).fill_null(False).alias("empty"),
        pl.Series("each", each_ppl(rows["value"].to_numpy(), rows["weight"].fill_null(0.0).to_numpy())),
    ).with_columns(pl.col("each").is_not_nan().alias("defined"))
    runs = rows["run"].unique().sort().to_list()
    for judge, tail in named:
        parts = dict(tables.by_cell(rows.filter(pl.col("scorer") == judge)))
        # All cells have the same protocol: the fullest says how many judgements there should be.
        expected = max(part.height for part in parts.values()) or rows.height
        for cell, part in parts.items():
            # What is neither judged nor empty failed, whether its row says so or is not there.
            failed = expected - int((part["defined"] | part["empty"]).sum())
            found = _statistics(part, runs, tables.space.size, tables.settings.ppl_drop_at)
            for name, statistic in found.items():
                yield Number(cell, name + tail, Measured(statistic, tables.space.resampler, failed, expected))


def _statistics(rows: pl.DataFrame, runs: list[int], size: int, drop_at: float) -> dict[str, Statistic]:
    """The definitions of `metrics.perplexity`, each as a statistic over `size` clusters."""
    clusters = rows["cluster"].to_numpy()
    cells = clusters * len(runs) + np.searchsorted(runs, rows["run"].to_numpy())

    def by_run(values: np.ndarray[Any, Any]) -> Floats:
        """(size, runs) sums of one value per row."""
        sums = np.bincount(cells, weights=values, minlength=size * len(runs)).astype(np.float64)
        return sums.reshape(size, len(runs))

    def count(marked: np.ndarray[Any, Any], among: np.ndarray[Any, Any]) -> RatioMean:
        """How many rows are marked: their share among rows of that kind, times the number of those."""
        total = max(1, int(among.sum()))
        ours, theirs = (by_run(values).sum(axis=1, keepdims=True) for values in (marked, among))
        return RatioMean(ours * total, theirs, ceiling=float(total))

    each, defined = rows["each"].to_numpy(), rows["defined"].to_numpy()
    kept = defined & (np.where(defined, each, np.inf) < drop_at)
    nll = np.where(defined, rows["value"].fill_null(0.0).to_numpy(), 0.0)
    tokens = np.where(defined, rows["weight"].fill_null(0.0).to_numpy(), 0.0)
    all_nll, all_tokens = (by_run(values).sum(axis=1, keepdims=True) for values in (nll, tokens))
    return {
        "ppl": RatioMean(by_run(np.where(kept, each, 0.0)), by_run(kept.astype(np.float64))),
        "ppl_median": Median(each[defined], clusters[defined], size),
        "ppl_pooled": RatioMean(all_nll, all_tokens, transform=np.exp),
        "ppl_dropped": count(defined & ~kept, defined),
        "ppl_empty": count(rows["empty"].to_numpy(), defined | rows["empty"].to_numpy()),
    }


METRIC = Metric(
    name="perplexity",
    direction="lower",
    range=(1.0, float("inf")),
    unit="perplexity per token",
    description="Perplexity of continuations given their prompts under a judge: mean below 1e4, median, pooled.",
    source="UniDetox section 4; released code U:877-903",
    measured=measured,
    judgements="ppl",
)
