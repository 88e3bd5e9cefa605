"""A corpus in the layouts other tools read."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from unidetox_ray.artifacts import atomic_path
from unidetox_ray.errors import ConfigError


def write_corpus(parquet: Path, out: Path) -> None:
    """parquet keeps every column; csv is the released layout (one column `Text`); jsonl has `text` and `ended`."""
    table = pl.read_parquet(parquet)
    if out.suffix not in {".parquet", ".csv", ".jsonl"}:
        raise ConfigError(f"--out {out}: unknown suffix {out.suffix!r}; accepted: .parquet, .csv, .jsonl")
    with atomic_path(out) as temporary:
        if out.suffix == ".parquet":
            table.write_parquet(temporary)
        elif out.suffix == ".csv":
            table.select(Text="text").write_csv(temporary, quote_style="non_numeric")
        else:
            table.select("text", "ended").write_ndjson(temporary)
