"""A corpus in the layouts other tools read."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from unidetox_ray.artifacts import write_corpus_csv, write_jsonl, write_parquet
from unidetox_ray.errors import ConfigError


def write_corpus(parquet: Path, out: Path) -> None:
    """parquet keeps every column; csv is the released layout (one column `Text`); jsonl has `text` and `ended`.

    Every one of them says that its text can be hateful: parquet inside, the others in a file beside them.
    """
    table = pl.read_parquet(parquet)
    if out.suffix not in {".parquet", ".csv", ".jsonl"}:
        raise ConfigError(f"--out {out}: unknown suffix {out.suffix!r}; accepted: .parquet, .csv, .jsonl")
    if out.suffix == ".parquet":
        write_parquet(out, table)
    elif out.suffix == ".csv":
        write_corpus_csv(out, table["text"].to_list())
    else:
        write_jsonl(out, table.select("text", "ended"))
