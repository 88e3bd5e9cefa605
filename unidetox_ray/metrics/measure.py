"""From stored rows to statistics: every number of every cell, over clusters that all cells share.

Prompts are the clusters (questions for mmlu, texts for clean_ppl), so that any two cells can be compared in pairs.
A failure is never a number: what failed is counted, and `Measured.reason` says when that is too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from unidetox_ray import registry
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.metrics.base import Measured, Metric, ResultSettings, Tables
from unidetox_ray.metrics.space import Space

__all__ = ["Measured", "Measurements", "ResultSettings", "Space", "measure"]


class Measurements(NamedTuple):
    """metrics: per cell, by name ("tp_id" …). domains: per cell, by (name, domain). tables: what was measured."""

    metrics: dict[str, dict[str, Measured]]
    domains: dict[str, dict[tuple[str, str], Measured]]
    tables: Tables


def measure(
    scores: pl.DataFrame,
    generations: pl.DataFrame,
    prompts: pl.DataFrame,
    cells: Sequence[str],
    settings: ResultSettings,
) -> Measurements:
    """What all registered metrics make of `cells`, before intervals; see `results.cell_results`."""
    metrics: list[Metric] = [registry.lookup("metrics", name) for name in registry.names("metrics")]
    tables = _tables(metrics, scores, generations, prompts, cells, settings)
    found = Measurements({cell: {} for cell in cells}, {cell: {} for cell in cells}, tables)
    owners: dict[str, str] = {}
    for metric in metrics:
        for cell, name, measured, domain in metric.measured(tables):
            if owners.setdefault(name, metric.name) != metric.name:
                raise ConfigError(
                    f"metrics: {name!r} is measured by {owners[name]!r} and by {metric.name!r}; rename one of the two"
                )
            if domain is None:
                found.metrics[cell][name] = measured
            else:
                found.domains[cell][name, domain] = measured
    return found


def _tables(
    metrics: Sequence[Metric],
    scores: pl.DataFrame,
    generations: pl.DataFrame,
    prompts: pl.DataFrame,
    cells: Sequence[str],
    settings: ResultSettings,
) -> Tables:
    """Rows of `cells` only; of the prompts those that any of them continued or had judged."""
    scores = scores.filter(pl.col("cell").is_in(list(cells)))
    generations = generations.filter(pl.col("cell").is_in(list(cells)))
    kinds = [metric.judgements for metric in metrics if metric.judgements is not None]
    of_prompts = scores.filter(pl.col("metric").is_in(kinds))
    used = pl.concat([generations["prompt_id"], of_prompts["prompt_id"]]).unique()
    foreign = used.filter(~used.is_in(prompts["prompt_id"].implode()))
    if len(foreign):
        raise DataError(
            f"prompts: {foreign.sort()[0]!r} was continued or judged but is not in the table of prompts"
        )
    prompts = prompts.filter(pl.col("prompt_id").is_in(used.implode()))
    space = Space.of(prompts, settings.group_by, settings.bootstrap_samples, settings.seed)
    return Tables(scores, generations, prompts, tuple(cells), space, settings)
