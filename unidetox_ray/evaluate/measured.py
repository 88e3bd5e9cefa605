"""TP, EMT, mean and share over the threshold of every source under every scorer, over all and by domain, with intervals.

TP and EMT are those of `metrics.toxicity`. All four are first taken per prompt, then averaged over the prompts of a domain,
then over domains (`all`), the domains of a distribution (its name), or over all prompts alike (`pooled`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from unidetox_ray.errors import DataError
from unidetox_ray.evaluate.scorers import Scorer
from unidetox_ray.evaluate.scoring import scores_of
from unidetox_ray.evaluate.store import Parts
from unidetox_ray.hashing import digest
from unidetox_ray.metrics.space import Space
from unidetox_ray.metrics.stats import Floats, Interval, RatioMean, Resampler, interval, macro_mean
from unidetox_ray.metrics.toxicity import domain_statistics, prompt_statistics

MEASURES = ("tp", "emt", "mean", "share")
#: Behind a measure's name where prompts count alike, whatever their domain.
POOLED = "pooled"


def value_column(scorer: str) -> str:
    """The column of a scorer's scores: never shared with another scorer's."""
    return f"toxicity@{scorer}"


def full_column(scorer: str) -> str:
    return f"full@{scorer}"


def rows_of(parts: Parts, scorers: Sequence[Scorer]) -> pl.DataFrame:
    """The rows of an argument without their texts: who, which prompt, run, whether a text is there, scores by scorer."""
    columns = ["source", "prompt_id", "prompt_key", "domain", "distribution", "run"]
    made = []
    for number, path in enumerate(parts):
        table = pl.read_parquet(path, columns=[*columns, "text"]).with_columns(
            pl.col("text").is_not_null().alias("made")
        )
        made.append(table.drop("text").with_columns(pl.lit(number).alias("part")))
    rows = pl.concat(made)
    for scorer in scorers:
        scored = pl.concat([table for _, table in scores_of(parts, scorer)])
        rows = rows.with_columns(
            scored["toxicity"].fill_nan(None).alias(value_column(scorer.name)),
            scored["full"].fill_null(False).alias(full_column(scorer.name)),
        )
    return rows


def checked_prompts(label: str, rows: pl.DataFrame) -> None:
    """DataError for an id that stands with different prompts, and for a domain in two distributions."""
    prompts = (
        rows.group_by("prompt_id")
        .agg(pl.col("prompt_key").drop_nulls().n_unique())
        .filter(pl.col("prompt_key") > 1)
    )
    if prompts.height:
        first = prompts.sort("prompt_id").row(0)
        raise DataError(
            f"{label}: prompt_id {first[0]!r} stands with {first[1]} different prompts; give every prompt an id of its own, or name "
            "another column with --column prompt_id=NAME"
        )
    domains = (
        rows.group_by("domain").agg(pl.col("distribution").n_unique()).filter(pl.col("distribution") > 1)
    )
    if domains.height:
        raise DataError(
            f"{label}: domain {domains['domain'].sort()[0]!r} stands in two distributions; each domain is in one"
        )


def keyed(tables: Mapping[str, pl.DataFrame], *, by_text: bool) -> dict[str, pl.DataFrame]:
    """Each source's rows with `key`, which says what prompt they continue: the same in every source.

    by_text: by the prompt's text, where not all sources have ids of their own. A prompt that stands in several domains
    is several prompts.
    """
    found = {}
    for label, rows in tables.items():
        key = pl.coalesce("prompt_key", "prompt_id") if by_text else pl.col("prompt_id")
        several = pl.col("domain").n_unique().over("key") > 1
        found[label] = rows.with_columns(key=key).with_columns(
            key=pl.when(several).then(pl.format("{}/{}", "key", "domain")).otherwise("key")
        )
    return found


@dataclass
class Pool:
    """Spaces of prompts, one for each set of them, and the statistics that are drawn together there."""

    samples: int
    seed: int
    _spaces: dict[str, Space] = field(default_factory=dict)
    _waiting: dict[int, tuple[Resampler, list[RatioMean]]] = field(default_factory=dict)
    #: By identity; the statistic itself is kept, so that no other can have its place in memory.
    _drawn: dict[int, tuple[RatioMean, Floats]] = field(default_factory=dict)

    def space(self, prompts: pl.DataFrame) -> Space:
        """prompts: prompt_id, domain, distribution, each prompt once. Equal sets share a space, whatever their order."""
        prompts = prompts.sort("prompt_id")
        mark = digest(prompts.hash_rows(seed=1).to_numpy().tobytes().hex() if prompts.height else "")
        if mark not in self._spaces:
            self._spaces[mark] = Space.of(prompts, "prompt_id", self.samples, self.seed, accepted=None)
        return self._spaces[mark]

    def add(self, space: Space, statistic: RatioMean) -> RatioMean:
        self._waiting.setdefault(id(space.resampler), (space.resampler, []))[1].append(statistic)
        return statistic

    def draw(self) -> None:
        """Resample everything that waits, each space once."""
        for resampler, statistics in self._waiting.values():
            for statistic, draws in zip(statistics, resampler.draws(statistics), strict=True):
                self._drawn[id(statistic)] = (statistic, draws)
        self._waiting.clear()

    def of(self, statistic: RatioMean) -> Floats:
        return self._drawn[id(statistic)][1]


@dataclass(frozen=True)
class Judged:
    """A source under one scorer. values: measure -> (prompts,) float64, NaN = none, in the order of the space."""

    source: str
    scorer: str
    space: Space
    values: dict[str, Floats]
    counts: dict[str, Any]


def judged(source: str, scorer: str, rows: pl.DataFrame, space: Space, threshold: float) -> Judged:
    """Values by prompt. rows: those of `keyed`; the prompts of `space` alone count."""
    value = value_column(scorer)
    long = rows.select(
        pl.lit(source).alias("cell"), pl.lit("toxicity").alias("metric"), pl.lit(scorer).alias("scorer"),
        pl.col("key").alias("prompt_id"), "run", pl.col(value).alias("value"),
    )  # fmt: skip
    found = prompt_statistics(long, space.clusters, threshold=threshold)
    values = {name: space.spread(found["cluster"], found[name]) for name in MEASURES}
    scores = rows[value]
    seen, made, total = scores.count(), int(rows["made"].sum()), rows.height
    per_prompt = rows.group_by("key").len()["len"]
    counts = {
        "prompts": rows["key"].n_unique(), "prompts_without_score": int(np.isnan(values["tp"]).sum()),
        "continuations": total, "ok": seen, "failed": total - seen, "failed_share": (total - seen) / total if total else None,
        "generations_failed": total - made, "scores_failed": made - seen, "toxic": int((scores > threshold).sum()),
        "filled_the_scorer": int(rows[full_column(scorer)].sum()),
        "continuations_per_prompt": {"least": per_prompt.min(), "most": per_prompt.max()},
    }  # fmt: skip
    return Judged(source, scorer, space, values, counts)


def statistics_of(part: Judged) -> dict[tuple[str, str, str], RatioMean]:
    """(measure, "scope" or "domain", its name) -> statistic."""
    space, found = part.space, {}
    kinds = dict(enumerate(space.domains.values()))
    names = list(space.domains)
    for measure, values in part.values.items():
        for where, statistic in domain_statistics(values, space.domain_codes, kinds).items():
            if where == "all" or (where in kinds.values() and len(set(kinds.values())) > 1):
                found[measure, "scope", where] = statistic
            elif where.isdigit() and len(names) > 1:
                found[measure, "domain", names[int(where)]] = statistic
        if len(names) > 1:
            one = np.zeros(space.size, dtype=np.int64)
            found[measure, "scope", POOLED] = macro_mean(values, one, [0], ceiling=1.0)
    return found


def entry(statistic: RatioMean, draws: Floats) -> dict[str, Any]:
    """value, ci_low, ci_high, n (prompts) as JSON; a value that is none is null and says why."""
    found = interval(statistic, draws)
    made = {**ends(found), "n": statistic.n}
    return (
        made
        if made["value"] is not None
        else made | {"reason": "no score" if not statistic.n else "a domain has no score"}
    )


def ends(found: Interval) -> dict[str, float | None]:
    pairs = {"value": found.value, "ci_low": found.low, "ci_high": found.high}
    return {name: float(end) if math.isfinite(end) else None for name, end in pairs.items()}
