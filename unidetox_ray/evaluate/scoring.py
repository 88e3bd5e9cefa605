"""Scores of stored generations, part by part: equal texts once, batches of like length, resumable, failures null."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import private_folder, write_parquet
from unidetox_ray.evaluate.scorers import Scorer
from unidetox_ray.evaluate.store import Parts

SCORED = {"toxicity": pl.Float64, "error": pl.String, "full": pl.Boolean}
#: Distinct texts of one call: enough for batches of like length, few enough for a bar that moves.
_SLICE = 1024
#: A digest of a text stands for it: half of 128 bits of chance that two texts of 10^9 share one is 10^-20.
_DIGEST = 16

Found = tuple[float | None, str | None, bool]


@dataclass
class Memory:
    """What a scorer said of the texts so far, by digest: some 150 bytes a distinct text, whatever its length."""

    said: dict[bytes, Found] = field(default_factory=dict)
    scored: int = 0
    """Texts that the scorer really read in this process."""
    reused: int = 0
    """Rows whose scores lay on disk."""


def score(parts: Parts, scorer: Scorer, memory: Memory, done: Any) -> None:
    """Write the scores of every part that lacks them. done: called with numbers of finished rows."""
    folder = private_folder(parts.folder / scorer.key)
    for path in parts:
        texts: list[str | None] = pl.read_parquet(path, columns=["text"])["text"].to_list()
        digests = [None if text is None else _digest(text) for text in texts]
        target = folder / path.name
        kept = pl.read_parquet(target) if target.exists() else None
        if kept is None or kept.height != len(texts):
            kept = _scored(texts, digests, scorer, memory, done)
            write_parquet(target, kept)
        else:
            memory.reused += len(texts)
            done(len(texts))
        for mark, row in zip(digests, kept.iter_rows(), strict=True):
            if mark is not None:
                memory.said[mark] = row


def _scored(
    texts: Sequence[str | None], digests: Sequence[bytes | None], scorer: Scorer, memory: Memory, done: Any
) -> pl.DataFrame:
    """SCORED of one part, in its order. A text that is missing has no score and is no failure of the scorer."""
    new = {
        mark: text for mark, text in zip(digests, texts, strict=True)
        if mark is not None and text is not None and mark not in memory.said
    }  # fmt: skip
    ordered = sorted(new, key=lambda mark: len(new[mark]))
    told = 0
    for first in range(0, len(ordered), _SLICE):
        marks = ordered[first : first + _SLICE]
        values = scorer.judge.score([new[mark] for mark in marks])
        found = zip(values, scorer.judge.errors, scorer.judge.full, strict=True)
        memory.said.update(zip(marks, found, strict=True))
        memory.scored += len(marks)
        now = len(texts) * (first + len(marks)) // len(ordered)
        done(now - told)
        told = now
    done(len(texts) - told)
    rows = [(None, None, None) if mark is None else memory.said[mark] for mark in digests]
    return pl.DataFrame(rows, schema=SCORED, orient="row")


def scores_of(parts: Parts, scorer: Scorer) -> Iterator[tuple[Path, pl.DataFrame]]:
    """(a part's file, its SCORED table), in order."""
    for path in parts:
        yield path, pl.read_parquet(parts.folder / scorer.key / path.name)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest()
