"""The record of one benchmark, as JSON and as a small table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BenchResult:
    """One measurement. Seconds are wall clock after a device sync.

    seconds: the fastest of the timed runs. warmup_seconds: what comes on top in the first run: preparing the model and
    all that the first call does once. tokens_per_second: new tokens (decode, generate), real tokens (score, finetune,
    pipeline) of a timed run. ratio_to_plain: seconds of the plain loop / seconds; for `pipeline` seconds through Ray /
    seconds of plain calls, as `extra["ratio"]` says; None when the plain loop was not run. share_of_limit: seconds that
    the bytes or the arithmetic take at the measured limits, whichever is longer / seconds; None where the benchmark has
    no such bound. peak_gib: memory of the first run, of the device, else of the process. batch: as `extra` explains.
    """

    name: str
    device: str
    dtype: str
    batch: int | None
    seconds: float
    warmup_seconds: float
    tokens_per_second: float
    ratio_to_plain: float | None
    share_of_limit: float | None
    peak_gib: float
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Flat and ready for JSON; numbers to four significant digits."""
        values = {name: getattr(self, name) for name in _COLUMNS}
        return {name: _rounded(value) for name, value in {**values, **self.extra}.items()}


_COLUMNS = (
    "name", "device", "dtype", "batch", "seconds", "warmup_seconds", "tokens_per_second", "ratio_to_plain",
    "share_of_limit", "peak_gib",
)  # fmt: skip


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value


def table(results: Sequence[BenchResult]) -> str:
    """One line a result under a line of names, then the further values of each."""
    rows = [list(_COLUMNS)]
    for result in results:
        values = result.as_dict()
        rows.append(["-" if values[name] is None else str(values[name]) for name in _COLUMNS])
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    for result in results:
        lines += [f"  {name}: {value}" for name, value in result.as_dict().items() if name not in _COLUMNS]
    return "\n".join(lines)
