"""What an evaluation leaves: lines for a terminal, scores.parquet, results.json. No text of a model is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import warned
from unidetox_ray.artifacts import atomic_path
from unidetox_ray.evaluate.measured import MEASURES, POOLED, full_column, value_column
from unidetox_ray.evaluate.scorers import Scorer
from unidetox_ray.evaluate.scoring import scores_of
from unidetox_ray.evaluate.store import Parts
from unidetox_ray.report.text import MISSING, clean, count, interval, number, percent
from unidetox_ray.table import aligned

#: Columns of a part that scores.parquet does not repeat.
_INTERNAL = ("prompt_key",)
HEADS = {"tp": "TP", "emt": "EMT", "mean": "mean", "share": "share"}


def tail_of(scorer: str, main: str) -> str:
    """Behind the names of a scorer's numbers: nothing for the main one."""
    return "" if scorer == main else f"@{scorer}"


def table(results: Mapping[str, Any]) -> str:
    """The results for a terminal."""
    lines = []
    main, threshold = results["scorer"], results["threshold"]
    heads = ("source", "scorer", "prompts", "texts", "failed", *(HEADS[name] for name in MEASURES))
    rows: list[tuple[str, ...]] = [heads]
    for source in results["sources"]:
        for scorer, counts in source["counts"].items():
            tail = tail_of(scorer, main)
            rows.append(
                (
                    clean(source["source"], 40), clean(scorer, 30), count(counts["prompts"]), count(counts["continuations"]),
                    _failed(counts), *(_value(source["metrics"].get(f"{name}_all{tail}")) for name in MEASURES),
                )
            )  # fmt: skip
        if source["error"] is not None:
            rows.append(
                (clean(source["source"], 40), MISSING, MISSING, MISSING, "all", *[MISSING] * len(MEASURES))
            )
    lines += aligned(rows)
    lines.append(
        f"TP: share of prompts with a text above {threshold:g}; EMT: mean of the worst score; mean: mean score; share: of texts above "
        f"{threshold:g}; 95 % intervals"
    )
    lines += _corrections(results) + _domains(results) + _comparisons(results)
    lines += ["", *(f"note: {clean(note, 400)}" for note in results["notes"])] if results["notes"] else []
    return "\n".join(lines)


def _failed(counts: Mapping[str, Any]) -> str:
    return f"{count(counts['failed'])} ({percent(counts['failed_share'])})" if counts["failed"] else "0"


def _value(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return MISSING
    return f"{number(entry['value'])} {interval(entry['ci_low'], entry['ci_high'])}".strip()


def _corrections(results: Mapping[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("corrected share", "scorer", "as judged", "corrected", "sensitivity", "specificity")
    ]
    for source in results["sources"]:
        for scorer, found in (source.get("corrected") or {}).items():
            rows.append(
                (
                    clean(source["source"], 40), clean(scorer, 30), number(found["observed"]), _value(found),
                    number(found["sensitivity"]), number(found["specificity"]),
                )
            )  # fmt: skip
    return ["", *aligned(rows)] if len(rows) > 1 else []


def _domains(results: Mapping[str, Any]) -> list[str]:
    main = results["scorer"]
    rows: list[tuple[str, ...]] = [("by domain", "scorer", "domain", *(HEADS[name] for name in MEASURES))]
    for source in results["sources"]:
        for scorer in source["counts"]:
            tail = tail_of(scorer, main)
            name = clean(source["source"], 40), clean(scorer, 30)
            for scope in scopes_of(source["metrics"], tail):
                rows.append(
                    (
                        *name,
                        clean(scope, 30),
                        *(_value(source["metrics"].get(f"{m}_{scope}{tail}")) for m in MEASURES),
                    )
                )
            for domain, entries in source["domains"].items():
                rows.append(
                    (*name, clean(domain, 30), *(_value(entries.get(f"{m}{tail}")) for m in MEASURES))
                )
    return ["", *aligned(rows)] if len(rows) > 1 else []


def scopes_of(metrics: Mapping[str, Any], tail: str) -> Iterator[str]:
    """What the numbers of one scorer are over, "all" aside: distributions, then pooled prompts."""
    for name in metrics:
        measure, _, rest = name.partition("_")
        scope = rest.removesuffix(tail) if tail else rest
        if measure == "tp" and rest.endswith(tail) and "@" not in scope and scope != "all":
            yield scope


def _comparisons(results: Mapping[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        (
            "compared",
            "with",
            "scorer",
            "measure",
            "prompts",
            "difference",
            "d",
            "lower/higher",
            "p",
            "p (Holm)",
        )
    ]
    for pair in results["comparisons"]:
        for measure, entry in pair["measures"].items():
            ends = interval(entry["diff_low"], entry["diff_high"], signed=True)
            rows.append(
                (
                    clean(pair["source"], 40), clean(pair["reference"], 40), clean(pair["scorer"], 30), HEADS[measure],
                    count(entry["n"]), f"{number(entry['diff'], signed=True)} {ends}".strip(), number(entry["cohens_d"], signed=True),
                    f"{count(entry['prompts_lower'])}/{count(entry['prompts_higher'])}", p_value(entry["p"]), p_value(entry["p_holm"]),
                )
            )  # fmt: skip
    lines = ["", *aligned(rows)] if len(rows) > 1 else []
    tests = sorted({e["test"] for pair in results["comparisons"] for e in pair["measures"].values()})
    if tests:
        lines.append(f"p: two-sided, {'; '.join(tests)}; d: Cohen's d of the paired differences")
    return lines


def p_value(value: float | None) -> str:
    """A p-value: three decimals, or below 0.001 its first digits."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if value >= 0.001 else number(value)


def write_scores(
    path: Path, arguments: Sequence[tuple[Parts, Mapping[str, str]]], scorers: Sequence[Scorer]
) -> None:
    """scores.parquet, part by part: the rows with their texts, and for each scorer `toxicity@`, `error@` and `full@`.

    arguments: parts, and what their sources are called in the results.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with atomic_path(path) as temporary:
        writer = None
        try:
            for parts, names in arguments:
                scored = [scores_of(parts, scorer) for scorer in scorers]
                for part in parts:
                    rows = pl.read_parquet(part).drop(_INTERNAL)
                    rows = rows.with_columns(
                        pl.col("source").replace_strict(
                            names, default=pl.col("source"), return_dtype=pl.String
                        )
                    )
                    for scorer, tables in zip(scorers, scored, strict=True):
                        found = next(tables)[1]
                        rows = rows.with_columns(
                            found["toxicity"].alias(value_column(scorer.name)),
                            found["error"].alias(f"error@{scorer.name}"),
                            found["full"].alias(full_column(scorer.name)),
                        )
                    made: pa.Table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
                    if writer is None:
                        said = {key: value for key, value in (warned.metadata_of(rows.columns) or {}).items()}
                        writer = parquet.ParquetWriter(
                            temporary, made.schema.with_metadata(said), compression="zstd"
                        )
                    writer.write_table(made.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()


__all__ = ["POOLED", "scopes_of", "table", "tail_of", "write_scores"]
