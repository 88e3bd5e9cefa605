"""The tables that a run ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = ("tp_id", "tp_ood", "emt_id", "emt_ood", "ppl", "dist2", "clean_ppl", "mmlu")
#: Columns of the leaderboard behind `lowers`: measure or cost, and its head.
_RANKED = (
    ("clean_ratio", "clean ×"), ("ppl", "ppl"), ("emt_all", "emt_all"), ("dist2", "dist2"), ("mmlu", "mmlu"),
    ("decode_relative_cost", "decode ×"), ("trainable_parameters", "trained"), ("extra_memory_gib", "extra GiB"),
)  # fmt: skip


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


def leaderboard(rows: Sequence[dict[str, Any]]) -> str:
    """One line per method over all families, or "" unless methods of several kinds or more than four are compared."""
    from unidetox_ray.leaderboard import board_of
    from unidetox_ray.report.text import MISSING, amount, clean, number, plural

    board = board_of(rows)
    if not board.is_wide:
        return ""
    names = [clean(standing.method, 40) for standing in board.standings]
    width = max(map(len, (*names, "method")))
    lines = [
        f"{'':>4}{'method':<{width}}{'tp_all':>9}{'lowers':>9}"
        + "".join(f"{head:>11}" for _, head in _RANKED)
    ]
    for name, standing in zip(names, board.standings, strict=True):
        lowers = f"{standing.lowers} of {standing.compared}" if standing.compared else MISSING
        line = f"{standing.rank or MISSING:>3} {name:<{width}}{number(standing.means.get('tp_all')):>9}{lowers:>9}"
        for measure, _ in _RANKED:
            value = standing.means.get(measure)
            shown = amount(value) if measure == "trainable_parameters" else number(value)
            line += f"{shown + (' ◆' if standing.fronts.get(measure) else ''):>11}"
        lines.append(line)
    families = plural(len(board.families), "family", "families")
    lines.append(
        f"    means over {families}; ◆ on the Pareto front of tp_all against that column; “lowers”: families whose "
        "paired interval lies below 0"
    )
    return "\n".join(lines)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of columns of one width each, the first to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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
