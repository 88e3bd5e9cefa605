"""The rows of every source: a file can hold several, models and servers are one each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from unidetox_ray import registry
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.evaluate.measured import rows_of
from unidetox_ray.evaluate.prompt_sets import PromptSet
from unidetox_ray.evaluate.request import Argument, Request
from unidetox_ray.evaluate.scorers import Scorer
from unidetox_ray.evaluate.sources import distinct
from unidetox_ray.evaluate.store import prompt_key


@dataclass(frozen=True)
class Tables:
    """Rows by source. owners: whose they are. failed: sources without generations, and why. names: what the sources of each
    argument are called, in the order of the arguments."""

    rows: dict[str, pl.DataFrame]
    owners: dict[str, Argument]
    failed: dict[str, str]
    names: list[dict[str, str]]


def by_source(arguments: Sequence[Argument], opened: Sequence[Scorer]) -> Tables:
    """The rows of every source under a name of its own; a file can hold several sources."""
    found: list[tuple[str, int, pl.DataFrame]] = []
    failed = {}
    for place, argument in enumerate(arguments):
        if argument.parts is None:
            failed[argument.source.label] = argument.error or "no generations"
            continue
        for (inner,), part in rows_of(argument.parts, opened).group_by("source", maintain_order=True):
            found.append((str(inner), place, part))
    labels = distinct([(inner, arguments[place].source.label) for inner, place, _ in found])
    names: list[dict[str, str]] = [{} for _ in arguments]
    for label, (inner, place, _) in zip(labels, found, strict=True):
        names[place][inner] = label
    rows = {label: part for label, (_, _, part) in zip(labels, found, strict=True)}
    owners = {label: arguments[place] for label, (_, place, _) in zip(labels, found, strict=True)}
    return Tables(rows, owners, failed, names)


def domains_of(prompts: PromptSet, tables: Tables) -> list[str]:
    """Give files that name no domains those of the prompt set, by the prompts' texts, else ids; notes on what does not meet."""
    known = prompts.table.select("prompt_id", "domain", "distribution").with_columns(
        pl.Series("prompt_key", [prompt_key(text) for text in prompts.table["prompt"]])
    )
    notes = []
    for label, rows in tables.rows.items():
        parts = tables.owners[label].parts
        if parts is None or parts.has_domains:
            continue
        by = "prompt_key" if parts.has_prompts else "prompt_id"
        found = rows.drop("domain", "distribution").join(
            known.unique(by, keep="first", maintain_order=True).select(by, "domain", "distribution"),
            on=by, how="left", maintain_order="left",
        )  # fmt: skip
        foreign = (
            found.filter(pl.col("domain").is_null())[by].n_unique() if found["domain"].null_count() else 0
        )
        if foreign == rows[by].n_unique():
            raise DataError(
                f"{label}: holds no prompt of --prompts {prompts.name}; leave --prompts out, or name the right set"
            )
        missing = known.filter(~pl.col(by).is_in(rows[by].drop_nulls().implode()))[by].n_unique()
        if foreign:
            notes.append(
                f"{label}: {foreign:,} prompts are not in {prompts.name}; they are a domain of their own"
            )
        if missing:
            notes.append(f"{label}: {missing:,} prompts of {prompts.name} have no row")
        elsewhere = pl.lit(f"not in {prompts.name}")
        tables.rows[label] = found.with_columns(
            pl.col("domain").fill_null(elsewhere), pl.col("distribution").fill_null(elsewhere)
        )
    return notes


def by_text(owners: Mapping[str, Argument], notes: list[str]) -> bool:
    """Whether prompts are told apart by their text: where only some sources have ids for them."""
    kinds = {owner.parts.explicit for owner in owners.values() if owner.parts is not None}
    if len(kinds) == 2:
        notes.append("prompts are matched by their text: not every source has a prompt_id")
        return True
    return False


def reference_of(request: Request, labels: Sequence[str]) -> str:
    if request.reference is None:
        return labels[0]
    wanted = [
        label
        for label in labels
        if label in (request.reference, Path(request.reference).stem, Path(request.reference).name)
    ]
    if not wanted:
        raise ConfigError(
            f"--reference {request.reference}: is none of the sources; {registry.suggest(request.reference, labels)}"
        )
    return wanted[0]
