"""An evaluation in MLflow: one run with the protocol and the files, under it a run for each source with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.evaluate.measured import MEASURES
from unidetox_ray.tracking import AnyTracker, open_tracker

EXPERIMENT = "unidetox/evaluate"
_PARTS = ("ci_low", "ci_high", "n")


@contextmanager
def tracking(uri: str | None, key: str, name: str, params: Mapping[str, Any]) -> Iterator[AnyTracker]:
    """The evaluation's run, RUNNING until the block ends. uri: None = mlruns/mlflow.db under the current folder. ConfigError."""
    artifacts = None
    if uri is None:
        root = Path("mlruns").absolute()
        uri, artifacts = f"sqlite:///{root / 'mlflow.db'}", root / "artifacts"
    with open_tracker(uri, experiment=EXPERIMENT, artifact_root=artifacts) as tracker:
        tracker.begin(key=key, name=name, params=params, tags={"stage": "evaluate"})
        yield tracker


def record(tracker: AnyTracker, results: Mapping[str, Any], out: Path | None) -> None:
    """Numbers of every source on a run of its own, the table of them and the files of `out` on the evaluation's."""
    lines = []
    for source in results["sources"]:
        run = tracker.child(
            "evaluation", key=source["source"], name=source["source"],
            params={"source": source["source"], "kind": source["kind"], "sha256": source["sha256"], "threshold": results["threshold"]},
            tags={"model": source["source"], "scorer": results["scorer"], "stage": "evaluate", "error": source["error"] or ""},
        )  # fmt: skip
        run.metrics(numbers(source))
        run.end("FINISHED" if source["status"] == "ok" else "FAILED")
        lines.append(
            {
                "source": source["source"],
                "status": source["status"],
                **{name: (source["metrics"].get(name) or {}).get("value") for name in _headline(results)},
            }
        )
    schema = {"source": pl.String, "status": pl.String, **dict.fromkeys(_headline(results), pl.Float64)}
    tracker.leaderboard(pl.DataFrame(lines, schema=schema))
    pairs = [
        {"source": pair["source"], "reference": pair["reference"], "scorer": pair["scorer"], "measure": measure}
        | {name: entry[name] for name in ("diff", "diff_low", "diff_high", "cohens_d", "p", "p_holm", "n")}
        for pair in results["comparisons"] for measure, entry in pair["measures"].items()
    ]  # fmt: skip
    if pairs:
        tracker.parent.table(pl.DataFrame(pairs), "comparisons.json")
    for name in ("results.json", "report.html"):
        if out is not None and (out / name).is_file():
            tracker.parent.artifact(out / name)


def _headline(results: Mapping[str, Any]) -> list[str]:
    main = results["scorer"]
    tails = ["" if about["name"] == main else f"@{about['name']}" for about in results["scorers"]]
    return [f"{measure}_all{tail}" for tail in tails for measure in MEASURES]


def numbers(source: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of one source of results.json under the names of a run's cells (`tracking.results`)."""
    found: dict[str, float | None] = {}
    for name, entry in source["metrics"].items():
        found[name] = entry["value"]
        found |= {f"{part}/{name}": entry[part] for part in _PARTS}
    for domain, entries in source["domains"].items():
        found |= {
            f"domain/{domain}/{name}": entry["value"]
            for name, entry in entries.items()
            if isinstance(entry, dict)
        }
    for scorer, counts in source["counts"].items():
        for name in (
            "prompts",
            "continuations",
            "failed",
            "failed_share",
            "generations_failed",
            "scores_failed",
        ):
            found[f"count/{name}/{scorer}"] = counts[name]
    for scorer, corrected in (source.get("corrected") or {}).items():
        found[f"corrected_share/{scorer}"] = corrected["value"]
    return {name: float(value) for name, value in found.items() if value is not None}
