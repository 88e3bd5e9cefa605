"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = ("tp_id", "tp_ood", "emt_id", "emt_ood", "ppl", "dist2", "clean_ppl", "mmlu")


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """One line per cell: value and half-width of its interval; "–" where a metric was withheld or the cell failed."""
    width = max(len(row["cell"]) for row in rows)
    lines = [" " * width + "".join(f"{name:>15}" for name in COLUMNS)]
    for row in rows:
        lines.append(
            f"{row['cell']:<{width}}"
            + "".join(f"{_number(row['metrics'].get(name)):>15}" for name in COLUMNS)
        )
    return "\n".join(lines)


def _number(metric: dict[str, Any] | None) -> str:
    if metric is None or metric.get("value") is None:
        return "–"
    value, low, high = metric["value"], metric.get("ci_low"), metric.get("ci_high")
    digits = 3 if abs(value) < 10 else 1
    return (
        f"{value:.{digits}f}"
        if low is None or high is None
        else f"{value:.{digits}f} ±{(high - low) / 2:.{digits}f}"
    )
