"""results.json rows as MLflow metrics, per-domain tables, a leaderboard of cells and a ranking of methods.

Metric names on a cell: `tp_id` …; beside it `ci_low/tp_id`, `ci_high/tp_id`, `n/tp_id`, `failed/tp_id` and,
against the same family's base cell, `diff/tp_id`, `diff_low/tp_id`, `diff_high/tp_id`; `domain/<domain>/tp`;
`cost/<name>`. The page draws one group of charts per part before a slash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from unidetox_ray.leaderboard import board_of, cell_table, method_table
from unidetox_ray.leaderboard.board import AXES, COSTS, RATIO

if TYPE_CHECKING:
    from unidetox_ray.tracking import AnyTracker

#: Paired numbers of a metric in results.json that become `<part>/<metric>`.
PARTS = ("ci_low", "ci_high", "n", "failed", "diff", "diff_low", "diff_high")
#: Metrics of the leaderboard that also show their interval, in this order before all others.
HEADLINE = ("tp_id", "tp_ood", "emt_id", "emt_ood")
#: What the descriptions of runs show.
NOTED = ("tp_all", "tp_id", "tp_ood", "emt_all", "ppl", "clean_ppl", "mmlu")
#: The parent's table of methods over all families.
RANKING = "ranking.json"
_DOMAIN_NUMBERS = ("value", "ci_low", "ci_high", "n")


def log_results(
    tracker: AnyTracker,
    rows: Sequence[Mapping[str, Any]],
    *,
    tags: Mapping[str, Any] | None = None,
) -> None:
    """Record every row of results.json on the run of its cell, end that run, write the parent's tables.

    Cell runs are `tracker.child("cell", key=row["cell"])`: the same runs when the driver opened them before.
    A row with status "failed" ends its run FAILED. A withheld metric (null) is named in the tag
    `unidetox.withheld`.

    Args:
        tags: tags for every cell beside those of the row (family, model, method, seed, scorer, device, stage and,
            from its settings, the hash of the corpus it was trained on).
    """
    for row in rows:
        costs = row.get("costs") or {}
        who = {name: row.get(name) for name in ("family", "model", "method", "seed")}
        withheld = sorted(name for name, part in row["metrics"].items() if part.get("value") is None)
        told = {
            "scorer": row.get("scorer"),
            "device": costs.get("device"),
            # One value on every cell, trained or not, failed or not: the page compares cells side by side.
            "stage": "cell",
            "withheld": ", ".join(withheld),
            "error": (row.get("error") or "")[:300],
        }
        settings = row.get("settings") or {}
        if settings.get("corpus_sha256"):
            told["corpus_sha256"] = settings["corpus_sha256"]
        run = tracker.child(
            "cell",
            key=row["cell"],
            name=row["cell"],
            params={**who, **settings},
            tags={**(tags or {}), **who, **told},
        )
        run.metrics(cell_metrics(row))
        run.note(cell_note(row))
        domains = domain_table([row])
        if domains.height:
            run.table(domains.drop("cell", "family", "method", "seed"), "domains.json")
        run.end("FINISHED" if row["status"] == "ok" else "FAILED")
    if rows:
        tracker.leaderboard(leaderboard_table(rows))
        ranking = method_table(board_of(rows))
        first = [name for name in ("rank", "method", *NOTED, RATIO) if name in ranking.columns]
        tracker.parent.table(ranking.select(*first, pl.exclude(first)), RANKING)
        tracker.describe(ranking_note(ranking))
        tracker.parent.table(domain_table(rows), "domains.json")


def cell_note(row: Mapping[str, Any]) -> str:
    """The description of a cell's run: its numbers of NOTED with interval and paired difference to base, or its error."""
    if row["status"] != "ok":
        return f"Failed: {row.get('error')}"
    lines = ["| metric | value | 95 % interval | difference to base |", "|---|---|---|---|"]
    for name in NOTED:
        metric = row["metrics"].get(name)
        if metric is None:
            continue
        interval = f"{_shown(metric.get('ci_low'))} – {_shown(metric.get('ci_high'))}"
        lines.append(
            f"| {name} | {_shown(metric.get('value'))} | {interval} | {_shown(metric.get('diff'), '+')} |"
        )
    return "\n".join(lines)


def ranking_note(ranking: pl.DataFrame) -> str:
    """The methods by rank as a Markdown table: means over families of NOTED."""
    names = [name for name in ("rank", "method", *NOTED, RATIO) if name in ranking.columns]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in ranking.select(names).iter_rows():
        lines.append("| " + " | ".join(_shown(value) for value in row) + " |")
    return "\n".join(lines) + "\n\nMethods, means over families; lower is better but for `mmlu`."


def _shown(value: Any, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def cell_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of one results.json row under the names of the module's text; nulls are left out.

    `cost/cpu_seconds` or `cost/gpu_seconds` is the sum of the row's `*_seconds`, each second once, named after its device.
    """
    values: dict[str, float | None] = {}
    for name, metric in row["metrics"].items():
        values[name] = metric.get("value")
        values.update({f"{part}/{name}": metric.get(part) for part in PARTS})
    for domain, numbers in (row.get("domains") or {}).items():
        for name in ("tp", "emt"):
            if name in numbers:
                values[f"domain/{domain}/{name}"] = numbers[name].get("value")
    costs = row.get("costs") or {}
    amounts = {name: value for name, value in costs.items() if isinstance(value, (int, float))}
    values.update({f"cost/{name}": value for name, value in amounts.items()})
    # decode_seconds are within generate_seconds
    parts = {name: value for name, value in amounts.items() if name != "decode_seconds"}
    seconds = [value for name, value in parts.items() if name.endswith("_seconds")]
    if seconds:
        processor = "cpu" if str(costs.get("device", "cpu")).startswith("cpu") else "gpu"
        values[f"cost/{processor}_seconds"] = float(sum(seconds))
    return {name: float(value) for name, value in values.items() if value is not None}


def leaderboard_table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One line per cell in the rows' order: who, status, scorer, then every metric that any cell has.

    The metrics of HEADLINE come first, each with its interval (`tp_id_low`, `tp_id_high`) and its paired
    difference to base (`tp_id_diff`). Metrics are float64, null where withheld or absent. Last come the method's kind,
    clean perplexity over the family's base, the Pareto fronts and the costs (`leaderboard.cell_table`).
    """
    present = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    ordered = sorted(present, key=lambda name: HEADLINE.index(name) if name in HEADLINE else len(HEADLINE))
    schema: dict[str, Any] = dict.fromkeys(("cell", "family", "model", "method"), pl.String)
    schema |= {"seed": pl.Int64, "status": pl.String, "scorer": pl.String}
    lines = []
    for row in rows:
        line = {name: row.get(name) for name in schema if name in row}
        for name in ordered:
            metric = row["metrics"].get(name) or {}
            line[name] = metric.get("value")
            if name in HEADLINE:
                parts = {"low": "ci_low", "high": "ci_high", "diff": "diff"}
                line.update({f"{name}_{short}": metric.get(part) for short, part in parts.items()})
        lines.append(line)
    for name in ordered:
        schema[name] = pl.Float64
        if name in HEADLINE:
            schema |= dict.fromkeys((f"{name}_low", f"{name}_high", f"{name}_diff"), pl.Float64)
    table, further = pl.DataFrame(lines, schema=schema, strict=False), cell_table(board_of(rows))
    shown = ("kind", "tuned", RATIO, *(f"front_{axis}" for axis in AXES), *COSTS)
    return table.hstack(further.select(name for name in shown if name in further.columns))


def domain_table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One line per cell and domain: distribution, then value, interval and count of TP and EMT (float64)."""
    who: dict[str, Any] = {"cell": pl.String, "family": pl.String, "method": pl.String, "seed": pl.Int64}
    schema = who | {"domain": pl.String, "distribution": pl.String}
    schema |= {_domain_column(m, part): pl.Float64 for m in ("tp", "emt") for part in _DOMAIN_NUMBERS}
    lines = []
    for row in rows:
        for domain, numbers in (row.get("domains") or {}).items():
            line = {name: row.get(name) for name in who}
            line |= {"domain": domain, "distribution": numbers.get("distribution")}
            for metric in ("tp", "emt"):
                for part in _DOMAIN_NUMBERS:
                    line[_domain_column(metric, part)] = (numbers.get(metric) or {}).get(part)
            lines.append(line)
    return pl.DataFrame(lines, schema=schema, strict=False)


def _domain_column(metric: str, part: str) -> str:
    return metric if part == "value" else f"{metric}_{part.removeprefix('ci_')}"
