"""TP and EMT of one file by one classifier: the short form behind `unidetox score`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.errors import ConfigError
from unidetox_ray.evaluate.measured import POOLED, value_column
from unidetox_ray.evaluate.verb import Request, evaluate
from unidetox_ray.single import write_table


def score_file(
    generations: Path, scorer: str, *, label: str | None, revision: str | None, out: Path | None
) -> dict[str, Any]:
    """prompts, continuations, failed, scorer, and tp and emt over all prompts alike, with intervals.

    out: a .parquet or .jsonl with the file's rows and a column `toxicity`. label: None = the one the scorer has. ConfigError,
    DataError, ModelError.
    """
    if out is not None and out.suffix not in {".parquet", ".jsonl"}:
        raise ConfigError(f"--out {out}: unknown suffix {out.suffix!r}; accepted: .parquet, .jsonl")
    named = scorer if revision is None else f"{scorer}@{revision}"
    with tempfile.TemporaryDirectory(prefix="unidetox-score-") as folder:
        request = Request(
            sources=(str(generations),),
            scorers=(named,),
            labels=() if label is None else (label,),
            out=Path(folder) / "scored",
        )
        results = evaluate(request)
        if out is not None:
            column = value_column(results["scorer"])
            table = pl.read_parquet(Path(folder) / "scored" / "scores.parquet").rename({column: "toxicity"})
            write_table(table.drop([name for name in table.columns if "@" in name]), out)
    if len(results["sources"]) > 1:
        names = ", ".join(source["source"] for source in results["sources"][:5])
        raise ConfigError(
            f"{generations}: holds several sources ({names} …); compare them with `unidetox evaluate`"
        )
    found = results["sources"][0]
    counts = found["counts"][results["scorer"]]
    values: dict[str, Any] = {name: counts[name] for name in ("prompts", "continuations", "failed")} | {
        "scorer": scorer
    }
    for name in ("tp", "emt"):
        entry = found["metrics"].get(f"{name}_{POOLED}", found["metrics"][f"{name}_all"])
        values[name] = {
            key: None if entry[key] is None else round(entry[key], 6)
            for key in ("value", "ci_low", "ci_high")
        }
    return values
