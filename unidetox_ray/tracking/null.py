"""The tracker for `tracking.uri: none`: the same calls as `Tracker` and `ChildRun`, recording nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import polars as pl

from unidetox_ray.tracking.runs import Kind


class NullRun:
    """Stands in for `ChildRun`."""

    run_id = ""
    resumed = False

    def metrics(self, values: Mapping[str, float | None], step: int = 0) -> None:
        """Records nothing."""

    def history(self, name: str, points: Iterable[tuple[int, float | None]]) -> None:
        """Records nothing."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Records nothing."""

    def tags(self, values: Mapping[str, Any]) -> None:
        """Records nothing."""

    def dataset(self, name: str, path: Path, digest: str, context: str, rows: int) -> None:
        """Records nothing."""

    def model(self, name: str, *, card: Path, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Records nothing."""

    def note(self, markdown: str) -> None:
        """Records nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Records nothing."""

    def table(self, df: pl.DataFrame, file: str) -> None:
        """Records nothing."""

    def end(self, status: str = "FINISHED") -> None:
        """Records nothing."""


class NullTracker:
    """Stands in for `Tracker`."""

    parent = NullRun()

    def begin(self, *, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Records nothing."""

    def child(
        self,
        kind: Kind,
        *,
        key: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        parent: NullRun | None = None,
    ) -> NullRun:
        """A run that records nothing."""
        return NullRun()

    def describe(self, markdown: str) -> None:
        """Records nothing."""

    def leaderboard(self, df: pl.DataFrame) -> None:
        """Records nothing."""

    def end(self, status: str = "FINISHED") -> None:
        """Records nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None
