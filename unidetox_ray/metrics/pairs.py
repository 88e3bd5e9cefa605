"""Paired differences between any two cells, beside those to the base that every row of results.json has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from unidetox_ray.metrics.measure import ResultSettings, measure
from unidetox_ray.metrics.stats import paired_difference


def cell_differences(
    scores: pl.DataFrame,
    generations: pl.DataFrame,
    prompts: pl.DataFrame,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    settings: ResultSettings,
) -> list[dict[str, dict[str, float | None]]]:
    """Per pair (ours, theirs) of cells: metric -> {diff, diff_low, diff_high} of ours - theirs, 95 %, by prompt.

    scores, generations, prompts: the stored tables. names: the metrics compared; one that either cell lacks, or that is
    withheld in one of them, is left out.
    """
    cells = list(dict.fromkeys(cell for pair in pairs for cell in pair))
    if not cells:
        return []
    found = measure(scores, generations, prompts, cells, settings).metrics
    rows: list[dict[str, dict[str, float | None]]] = []
    for ours, theirs in pairs:
        row: dict[str, dict[str, float | None]] = {}
        for name in names:
            both = [found[cell].get(name) for cell in (ours, theirs)]
            if any(one is None or one.reason(settings.max_failed_share) is not None for one in both):
                continue
            first, second = both
            assert first is not None and second is not None
            diff = paired_difference(first.resampler, first.statistic, second.statistic)
            values: dict[str, Any] = {"diff": diff.value, "diff_low": diff.low, "diff_high": diff.high}
            row[name] = {key: value if math.isfinite(value) else None for key, value in values.items()}
        rows.append(row)
    return rows
