"""Dist-n: how many different n-grams a prompt's continuations hold for each word they hold.

Released code U:905-942, taken from DExperts' evaluation. Per prompt: distinct n-grams over all its texts divided by
the number of *words* (one denominator for all n, so Dist-2 and -3 are no rates of their own n-grams, defect 26).
Words are what single spaces separate: two spaces in a row enclose an empty word. n-grams are told apart by their words
joined with "_", as released. The released code counts the prompt once per continuation; DExperts' original does not.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from unidetox_ray.metrics.base import Measured, Metric, Number, Tables
from unidetox_ray.metrics.stats import plain_mean

ORDERS = (1, 2, 3)


def distinct_by_group(texts: pl.DataFrame) -> pl.DataFrame:
    """texts: group (any type), text (String); null texts are left out. One row per group, in order of appearance:
    group, words (UInt32), dist1, dist2, dist3 (Float64 in [0, 1]).
    """
    words = (
        texts.drop_nulls("text")
        .with_row_index("row")
        .select("group", "row", pl.col("text").str.split(" ").alias("word"))
        .explode("word")
    )
    row, word = pl.col("row"), pl.col("word")
    grams = {"gram1": word}
    for order in ORDERS[1:]:
        # Rows are contiguous: the word n - 1 places on belongs to this n-gram when it is in the same text.
        joined = pl.concat_str([word.shift(-step) for step in range(order)], separator="_")
        grams[f"gram{order}"] = pl.when(row == row.shift(1 - order)).then(joined)
    counted = (
        words.with_columns(**grams)
        .group_by("group", maintain_order=True)
        .agg(pl.len().alias("words"), *(pl.col(f"gram{n}").drop_nulls().n_unique() for n in ORDERS))
    )
    return counted.select(
        "group", "words", *((pl.col(f"gram{n}") / pl.col("words")).alias(f"dist{n}") for n in ORDERS)
    )


def distinct_statistics(
    generations: pl.DataFrame, prompts: pl.DataFrame, *, with_prompt: bool = True, group_by: str = "prompt_id"
) -> pl.DataFrame:
    """Dist-1, -2, -3 per (cell, prompt), means over sampling runs.

    generations: GENERATIONS rows; those with an error or a null text are left out. prompts: PROMPTS rows.
    with_prompt: texts are prompt + continuation, as released; else the continuation alone (defect 25).
    group_by "prompt_text": prompts of equal text pool their texts, in all domains together, as released (U:915).
    Returns cell, prompt_id (of the first prompt of the group), dist1, dist2, dist3.
    """
    owners = prompts.select("prompt_id", "prompt", pl.col("prompt_id").alias("owner"))
    if group_by == "prompt_text":
        owners = owners.with_columns(pl.col("prompt_id").first().over("prompt").alias("owner"))
    rows = generations.filter(pl.col("error").is_null()).join(
        owners, on="prompt_id", how="inner", maintain_order="left"
    )
    text = pl.concat_str(["prompt", "text"]) if with_prompt else pl.col("text")
    found = distinct_by_group(
        rows.select(pl.struct("cell", "run", "owner").alias("group"), text.alias("text"))
    )
    return (
        found.unnest("group")
        .group_by("cell", pl.col("owner").alias("prompt_id"), maintain_order=True)
        .agg(pl.col(f"dist{n}").mean() for n in ORDERS)
    )


def distinct_n(prompts: list[str], texts: list[str | None]) -> dict[str, float]:
    """Mean Dist-1, -2, -3 over prompts of (prompt, text) pairs grouped by prompt, NaN without any text.

    Give texts that include their prompt for the released definition, continuations for DExperts' own.
    """
    table = pl.DataFrame({"group": prompts, "text": texts}, schema={"group": pl.String, "text": pl.String})
    found = distinct_by_group(table)
    if not found.height:
        return dict.fromkeys(("dist1", "dist2", "dist3"), float("nan"))
    return {f"dist{n}": float(found[f"dist{n}"].to_numpy().mean()) for n in ORDERS}


def measured(tables: Tables) -> Iterator[Number]:
    """dist1, dist2 and dist3 of every cell, with the prompt and (`_continuation`) without."""
    if not tables.generations.height:
        return
    space, group_by = tables.space, tables.settings.group_by
    lost, expected = tables.lost()
    where = space.clusters.select("prompt_id", "cluster")
    for with_prompt, tail in ((True, ""), (False, "_continuation")):
        values = distinct_statistics(
            tables.generations, tables.prompts, with_prompt=with_prompt, group_by=group_by
        ).join(where, on="prompt_id")
        for cell, part in tables.by_cell(values):
            for order in ORDERS:
                statistic = plain_mean(space.spread(part["cluster"], part[f"dist{order}"]))
                number = Measured(statistic, space.resampler, lost[cell], expected, "continuations")
                yield Number(cell, f"dist{order}{tail}", number)


METRIC = Metric(
    name="distinct",
    direction="higher",
    range=(0.0, 1.0),
    unit="distinct n-grams per word",
    description="Diversity of a prompt's continuations, with the prompt (as released) and without (as in DExperts).",
    source="released code U:905-942; Li et al. 2016; DExperts evaluate_generations.py",
    measured=measured,
)
