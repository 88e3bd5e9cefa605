"""results.json: numbers of every source, comparisons, corrections, and notes on what a reader should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from unidetox_ray.artifacts import versions
from unidetox_ray.errors import DataError, StageError
from unidetox_ray.evaluate import outputs
from unidetox_ray.evaluate.by_source import Tables, by_text, reference_of
from unidetox_ray.evaluate.compared import Comparisons, Pair, pair_of
from unidetox_ray.evaluate.correction import Labelled, corrected_share, labelled_of
from unidetox_ray.evaluate.measured import POOLED, Judged, Pool, entry, judged, keyed, statistics_of
from unidetox_ray.evaluate.prompt_sets import PromptSet
from unidetox_ray.evaluate.request import Argument, Request
from unidetox_ray.evaluate.scorers import Scorer
from unidetox_ray.metrics.stats import RatioMean
from unidetox_ray.stages.context import Display

#: From this share of failures on, a note says that the numbers describe the rest.
_MANY_FAILED = 0.01
#: More prompts than this take seconds to resample.
_MANY_PROMPTS = 20_000


def results_of(
    found: Tables, opened: Sequence[Scorer], request: Request,
    prompts: PromptSet | None, sampling: Mapping[str, Any] | None, labelled: pl.DataFrame | None, notes: list[str], display: Display,
) -> dict[str, Any]:  # fmt: skip
    tables, owners, failed = found.rows, found.owners, found.failed
    if not tables:
        raise StageError(f"evaluate: no source has a generation; {next(iter(failed.values()), '')}")
    tables = keyed(tables, by_text=by_text(owners, notes))
    pool, main = Pool(request.samples, request.seed), opened[0].name
    reference = reference_of(request, list(tables))
    waiting = {}
    for label, rows in tables.items():
        space = pool.space(
            rows.select(pl.col("key").alias("prompt_id"), "domain", "distribution").unique("prompt_id")
        )
        for scorer in opened:
            part = judged(label, scorer.name, rows, space, request.threshold)
            statistics = statistics_of(part)
            waiting[label, scorer.name] = (
                part,
                {name: pool.add(space, each) for name, each in statistics.items()},
            )
    comparisons = Comparisons(pool, request.threshold, request.seed)
    anonymous = frozenset(
        label
        for label, owner in owners.items()
        if owner.parts is not None and not owner.parts.explicit and not owner.parts.has_prompts
    )
    for label in tables:
        if label != reference:
            pair = pair_of(label, reference, tables, anonymous)
            comparisons.add(pair, tables, [scorer.name for scorer in opened])
            notes += _not_shared(pair)
    most = max(rows["key"].n_unique() for rows in tables.values())
    if most > _MANY_PROMPTS:
        display.say(f"resampling {most:,} prompts {request.samples:,} times …")
    pool.draw()
    samples = (
        {} if labelled is None else {scorer.name: _sample(scorer, labelled, request) for scorer in opened}
    )
    rows_made = []
    for label in [*tables, *failed]:
        if label in failed:
            rows_made.append(_source(label, None, None, failed[label]))
            continue
        made = _source(label, owners[label], tables[label], None)
        for scorer in opened:
            part, statistics = waiting[label, scorer.name]
            tail = outputs.tail_of(scorer.name, main)
            made["counts"][scorer.name] = part.counts
            for (measure, kind, where), statistic in statistics.items():
                numbers = entry(statistic, pool.of(statistic))
                if kind == "scope":
                    made["metrics"][f"{measure}_{where}{tail}"] = numbers
                else:
                    domain = made["domains"].setdefault(where, {"distribution": part.space.domains[where]})
                    domain[f"{measure}{tail}"] = numbers
        for name, sample in samples.items():
            made["corrected"][name] = _corrected(waiting[label, name], sample, pool, request)
            if "reason" in made["corrected"][name]:
                notes.append(
                    f"{label}: the share under {name} is not corrected: {made['corrected'][name]['reason']}"
                )
        _judge_failures(made, notes)
        rows_made.append(made)
    if all(row["status"] == "failed" for row in rows_made):
        raise StageError(f"evaluate: no text has a score; {rows_made[0]['error']}")
    notes += _uneven(rows_made)
    return {
        "sources": rows_made, "reference": reference if len(tables) > 1 else None, "comparisons": comparisons.results(),
        "scorer": main, "scorers": [scorer.about for scorer in opened], "threshold": request.threshold,
        "prompts": None if prompts is None else {"name": prompts.name, "sha256": prompts.sha256, "prompts": prompts.table.height},
        "sampling": None if sampling is None else dict(sampling), "bootstrap": {"samples": request.samples, "seed": request.seed},
        "notes": list(dict.fromkeys(notes)), "versions": versions(),
    }  # fmt: skip


def _not_shared(pair: Pair) -> list[str]:
    said = [
        (pair.only_source, f"of {pair.source} are not in {pair.reference}"),
        (pair.only_reference, f"of {pair.reference} are not in {pair.source}"),
        (pair.other_prompt, f"have another text in {pair.source} than in {pair.reference} under the same id"),
    ]
    if pair.reason is not None:
        return [f"{pair.source} is not compared with {pair.reference}: {pair.reason}"]
    return [f"{number:,} prompts {words}: left out of the comparison" for number, words in said if number]


def _source(
    label: str, owner: Argument | None, rows: pl.DataFrame | None, error: str | None
) -> dict[str, Any]:
    parts = owner.parts if owner is not None else None
    return {
        "source": label, "kind": owner.source.kind if owner is not None else "model", "status": "ok" if error is None else "failed",
        "error": error, "sha256": owner.sha256 if owner is not None else None, "columns": parts.told if parts is not None else None,
        "counts": {}, "metrics": {}, "domains": {}, "corrected": {},
    }  # fmt: skip


def _sample(scorer: Scorer, labelled: pl.DataFrame, request: Request) -> Labelled | str:
    """What the scorer says of the labelled texts, or why that tells nothing of its errors."""
    scores = scorer.judge.score(labelled["text"].to_list())
    try:
        return labelled_of(
            scores, labelled["label"].to_list(), threshold=request.threshold, where=str(request.labelled)
        )
    except DataError as error:
        return str(error)


def _corrected(
    waiting: tuple[Judged, dict[tuple[str, str, str], RatioMean]],
    sample: Labelled | str,
    pool: Pool,
    request: Request,
) -> dict[str, Any]:
    """The share of texts above the threshold over all prompts alike, corrected; null with a reason where that cannot be."""
    part, statistics = waiting
    statistic = statistics.get(("share", "scope", POOLED), statistics["share", "scope", "all"])
    numbers = entry(statistic, pool.of(statistic))
    made = {
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "observed": numbers["value"],
        "sensitivity": None,
        "specificity": None,
    }
    if isinstance(sample, str) or numbers["value"] is None:
        return made | {"reason": sample if isinstance(sample, str) else "no score"}
    made |= {
        "sensitivity": sample.sensitivity,
        "specificity": sample.specificity,
        "labelled": len(sample.truths),
    }
    try:
        found = corrected_share(
            numbers["value"], sample, n=statistic.n, draws=pool.of(statistic), method=request.correction,  # type: ignore[arg-type]
        )  # fmt: skip
    except DataError as error:
        return made | {"reason": str(error)}
    return made | {
        "value": found.value, "ci_low": found.low, "ci_high": found.high, "method": found.method, "clipped": found.clipped,
        "labelled_failed": sample.failed, "n": part.counts["prompts"],
    }  # fmt: skip


def _judge_failures(made: dict[str, Any], notes: list[str]) -> None:
    for scorer, counts in made["counts"].items():
        if not counts["ok"]:
            why = (
                "no row has a text"
                if counts["generations_failed"] == counts["continuations"]
                else "no text has a score"
            )
            made["status"], made["error"] = (
                "failed",
                f"{why} ({counts['failed']:,} of {counts['continuations']:,} failed)",
            )
            notes.append(f"{made['source']}: {made['error']} under {scorer}")
        elif counts["failed_share"] > _MANY_FAILED:
            notes.append(
                f"{made['source']}: {counts['failed_share']:.1%} of the texts failed under {scorer}; the numbers describe the rest"
            )
        if counts["prompts_without_score"] and counts["ok"]:
            notes.append(
                f"{made['source']}: {counts['prompts_without_score']:,} prompts have no score under {scorer} and are left out"
            )


def _uneven(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """TP and EMT are of the worst of a prompt's texts, and so grow with their number."""
    spans = {
        row["source"]: next(iter(row["counts"].values()))["continuations_per_prompt"]
        for row in rows
        if row["counts"]
    }
    said = [
        f"{source}: prompts have {span['least']} to {span['most']} texts; TP and EMT grow with their number"
        for source, span in spans.items() if span["least"] != span["most"]
    ]  # fmt: skip
    if len({span["most"] for span in spans.values()}) > 1:
        counts = ", ".join(f"{source} {span['most']}" for source, span in spans.items())
        said.append(
            f"texts a prompt differ between sources ({counts}): TP and EMT grow with their number; compare mean and share instead"
        )
    return said
