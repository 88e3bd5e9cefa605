"""Stored Perspective scores as a scorer like any other: it says what the file says of a text, and nothing of other texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import file_sha256, private_folder, write_parquet
from unidetox_ray.errors import ConfigError
from unidetox_ray.evaluate.perspective import read_scores
from unidetox_ray.evaluate.scorers import Scorer
from unidetox_ray.evaluate.scoring import SCORED
from unidetox_ray.evaluate.store import Parts, distribution_in, prompt_key
from unidetox_ray.hashing import digest

NAME = "perspective"
_NOT_THERE = "no stored score of this text"


class StoredScores:
    """`score` of texts by looking them up. Perspective judged a text without its prompt, so the text alone is the key."""

    def __init__(self, table: pl.DataFrame) -> None:
        """table: perspective.STORED. A text that stands with several scores keeps its first one; `differing` counts them."""
        self.errors: list[str | None] = []
        self.full: list[bool] = []
        self.differing = 0
        self._said: dict[bytes, tuple[float | None, str | None]] = {}
        for text, value, error in (
            with_texts(table).select("text", "toxicity", "error").drop_nulls("text").iter_rows()
        ):
            before = self._said.setdefault(_mark(text), (value, error))
            if before[0] is None and value is not None:
                self._said[_mark(text)] = (value, error)
            elif value is not None and value != before[0]:
                self.differing += 1

    def score(self, texts: Sequence[str]) -> list[float | None]:
        """The stored score of each text; None where `errors` (same order) says why."""
        found = [self._said.get(_mark(text), (None, _NOT_THERE)) for text in texts]
        self.errors = [error for _, error in found]
        self.full = [False] * len(texts)
        return [value for value, _ in found]


def stored(path: Path) -> tuple[Scorer, pl.DataFrame]:
    """The scorer of a file of stored scores, and its rows. DataError."""
    table = read_scores(path)
    judge, sha256 = StoredScores(table), file_sha256(path)
    about = {
        "name": NAME, "kind": "stored", "source": path.name, "sha256": sha256, "label": "TOXICITY", "scores": table["toxicity"].count(),
    }  # fmt: skip
    warning = None
    if judge.differing:
        warning = (
            f"{path.name}: {judge.differing:,} texts stand there with several scores; the first one counts"
        )
    return Scorer(NAME, digest(["stored", sha256])[:16], about, judge, warning), table


def with_texts(table: pl.DataFrame) -> pl.DataFrame:
    """The rows, raw answers of the API that do not repeat their text with one that says so."""
    stand_in = pl.format("(text of row {} is not stored)", "row")
    unnamed = pl.col("text").is_null() & pl.col("toxicity").is_not_null()
    return table.with_columns(text=pl.when(unnamed).then(stand_in).otherwise("text"))


def rows_of_stored(table: pl.DataFrame, path: Path, others: Sequence[str]) -> Iterator[dict[str, Any]]:
    """PART rows of a file of stored scores that is itself what is evaluated. others: scorers that would read its texts.

    ConfigError where they could not.
    """
    nameless = table.filter(pl.col("text").is_null() & pl.col("toxicity").is_not_null()).height
    if nameless and others:
        raise ConfigError(
            f"--perspective-scores {path.name}: {nameless:,} rows hold a score without its text, which {others[0]} cannot read; "
            "leave --scorer out"
        )
    for row in with_texts(table).iter_rows(named=True):
        yield {
            "row": row["row"], "source": row["source"], "prompt_id": row["prompt_id"], "prompt_key": prompt_key(row["prompt"]),
            "prompt": row["prompt"], "text": row["text"], "error": row["error"] if row["text"] is None else None, "run": 0,
            "continuation": row["continuation"], "domain": row["domain"], "distribution": distribution_in(row["distribution"]),
        }  # fmt: skip


def keep_own_scores(parts: Parts, scorer: Scorer, table: pl.DataFrame) -> None:
    """Each row's own score, where the rows of `table` were stored as `parts`: equal texts may stand there with different ones,
    or with none."""
    unread = pl.col("text").is_null()
    own = with_texts(table).select(
        "toxicity",
        error=pl.when(unread).then(None).otherwise("error"),
        full=pl.when(unread).then(None).otherwise(pl.lit(False)),
    )
    folder, first = private_folder(parts.folder / scorer.key), 0
    for path in parts:
        rows = pl.read_parquet(path, columns=["row"]).height
        write_parquet(folder / path.name, own.slice(first, rows).cast(pl.Schema(SCORED)))
        first += rows


def _mark(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
