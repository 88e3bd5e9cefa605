"""From judged rows to statistics: every metric of every cell, over clusters that all cells share.

Prompts are the clusters (questions for mmlu, texts for clean_ppl), so that any two cells can be compared in pairs.
A failure is never a number: failed judgements are counted, and `Measured.reason` says when they are too many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.metrics import distinct, perplexity, toxicity
from unidetox_ray.metrics.stats import (
    MIN_SAMPLES,
    Floats,
    Ints,
    Median,
    RatioMean,
    Resampler,
    Statistic,
    plain_mean,
)

EMPTY = "empty"


@dataclass(frozen=True)
class ResultSettings:
    """The part of the protocol that turns judgements into numbers; see `settings.EvaluateSection` for each."""

    scorer: str | None = None
    """Its metrics have plain names, others `name@scorer`; None = the only one there is."""
    judge: str | None = None
    """The same for perplexity."""
    threshold: float = 0.5
    ppl_drop_at: float = perplexity.DROP_AT
    group_by: toxicity.GroupBy = "prompt_id"
    bootstrap_samples: int = MIN_SAMPLES
    seed: int = 0
    max_failed_share: float = 0.01


@dataclass(frozen=True)
class Measured:
    """A metric of one cell before its interval. failed: of `expected` judgements (prompts for TP and EMT)."""

    statistic: Statistic
    resampler: Resampler
    failed: int
    expected: int
    unit: str = "judgements"

    def reason(self, limit: float) -> str | None:
        """Why the metric is withheld, or None."""
        if self.failed > limit * self.expected:
            return f"{self.failed} of {self.expected} {self.unit} failed, at most {limit:.2%} may"
        return None if math.isfinite(self.statistic.value) else "nothing to average"


Cells = dict[str, dict[str, Measured]]


@dataclass(frozen=True)
class Space:
    """The clusters of prompts: table prompt_id -> cluster, domain code per cluster, and their resampler."""

    clusters: pl.DataFrame
    domain_codes: Ints
    domains: dict[str, str]
    resampler: Resampler

    @classmethod
    def of(cls, prompts: pl.DataFrame, settings: ResultSettings) -> Space:
        clusters = toxicity.cluster_table(prompts, settings.group_by)
        domains: dict[str, str] = {}
        for domain, distribution in (
            clusters.select("domain", "distribution").unique(maintain_order=True).iter_rows()
        ):
            if domains.setdefault(domain, distribution) != distribution or distribution not in ("id", "ood"):
                raise DataError(
                    f"prompts: domain {domain!r} has distribution {distribution!r}; each domain is all id or all ood"
                )
        firsts = clusters.unique("cluster", keep="first", maintain_order=True).sort("cluster")
        codes = {domain: code for code, domain in enumerate(domains)}
        numbers = np.array([codes[domain] for domain in firsts["domain"]], dtype=np.int64)
        return cls(clusters, numbers, domains, Resampler(numbers, settings.bootstrap_samples, settings.seed))

    @property
    def size(self) -> int:
        return len(self.domain_codes)

    def spread(self, clusters: pl.Series, values: pl.Series) -> Floats:
        """(size,) float64 of values by cluster, NaN where there is none."""
        spread = np.full(self.size, np.nan)
        spread[clusters.to_numpy()] = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return spread


class Measurements(NamedTuple):
    """metrics, domains: per cell, by name ("tp_id", …; "tp/<domain>" …). scorer: the judge of the plain names."""

    metrics: Cells
    domains: Cells
    space: Space
    scorer: str | None


def measure(
    scores: pl.DataFrame,
    generations: pl.DataFrame,
    prompts: pl.DataFrame,
    cells: Sequence[str],
    settings: ResultSettings,
) -> Measurements:
    """Every metric of `cells` that the tables hold rows for, before intervals; see `results.cell_results`."""
    scores = scores.filter(pl.col("cell").is_in(list(cells)))
    generations = generations.filter(pl.col("cell").is_in(list(cells)))
    of_prompts = scores.filter(pl.col("metric").is_in(["toxicity", "ppl"]))
    used = pl.concat([generations["prompt_id"], of_prompts["prompt_id"]]).unique()
    foreign = used.filter(~used.is_in(prompts["prompt_id"].implode()))
    if len(foreign):
        raise DataError(
            f"prompts: {foreign.sort()[0]!r} was continued or judged but is not in the table of prompts"
        )
    used_prompts = prompts.filter(pl.col("prompt_id").is_in(used.implode()))
    space = Space.of(used_prompts, settings)
    found: Cells = {cell: {} for cell in cells}
    domains: Cells = {cell: {} for cell in cells}
    scorer = _add_toxicity(found, domains, scores, space, settings)
    _add_perplexity(found, scores, space, settings)
    _add_distinct(found, generations, used_prompts, space, settings)
    _add_items(found, scores, settings)
    return Measurements(found, domains, space, scorer)


def _judges(rows: pl.DataFrame, wanted: str | None, what: str) -> list[str]:
    """Who judged, the main one first; that one even where it has no rows, so that its metrics are withheld."""
    present = rows["scorer"].unique(maintain_order=True).to_list()
    if wanted is None and len(present) > 1:
        raise ConfigError(f"{what}: scores hold {sorted(present)}; say which of them is the main one")
    main = wanted or present[0]
    return [main, *(name for name in present if name != main)]


def _parts(rows: pl.DataFrame, cells: Cells) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of each live cell; a cell without any gets an empty table, so that its metrics are withheld, not absent."""
    parts = {str(key[0]): part for key, part in rows.group_by("cell", maintain_order=True)}
    for cell in cells:
        yield cell, parts.get(cell, rows.clear())


def _add_toxicity(
    found: Cells, domains: Cells, scores: pl.DataFrame, space: Space, settings: ResultSettings
) -> str | None:
    """The main scorer's name; None where nothing was judged."""
    rows = scores.filter(pl.col("metric") == "toxicity")
    if not rows.height:
        return None
    primary, *others = _judges(rows, settings.scorer, "scorer")
    for scorer in (primary, *others):
        tail = "" if scorer == primary else f"@{scorer}"
        kinds = dict(enumerate(space.domains.values()))
        judged = toxicity.prompt_statistics(
            rows.filter(pl.col("scorer") == scorer), space.clusters, threshold=settings.threshold
        )
        for cell, part in _parts(judged, found):
            failed = np.ones(space.size, dtype=bool)
            failed[part["cluster"].to_numpy()] = part["failed"].to_numpy()
            for name in ("tp", "emt"):
                values = space.spread(part["cluster"], part[name])
                for where, statistic in toxicity.domain_statistics(values, space.domain_codes, kinds).items():
                    if where in ("id", "ood", "all"):
                        wanted = [code for code, kind in kinds.items() if where in (kind, "all")]
                        target, label = found[cell], f"{name}_{where}{tail}"
                    elif scorer == primary:
                        wanted = [int(where)]
                        target, label = domains[cell], f"{name}/{list(space.domains)[int(where)]}"
                    else:
                        continue
                    touched = failed[np.isin(space.domain_codes, wanted)]
                    target[label] = Measured(
                        statistic, space.resampler, int(touched.sum()), len(touched), "prompts"
                    )
    return primary


def _add_perplexity(found: Cells, scores: pl.DataFrame, space: Space, settings: ResultSettings) -> None:
    rows = scores.filter(pl.col("metric") == "ppl")
    if not rows.height:
        return
    primary, *others = _judges(rows, settings.judge, "judge")
    rows = rows.join(space.clusters.select("prompt_id", "cluster"), on="prompt_id")
    rows = rows.with_columns(
        (pl.col("error") == EMPTY).fill_null(False).alias("empty"),
        pl.Series(
            "each", perplexity.each_ppl(rows["value"].to_numpy(), rows["weight"].fill_null(0.0).to_numpy())
        ),
    ).with_columns(pl.col("each").is_not_nan().alias("defined"))
    for scorer in (primary, *others):
        tail = "" if scorer == primary else f"@{scorer}"
        ours = rows.filter(pl.col("scorer") == scorer)
        parts = dict(_parts(ours, found))
        runs = rows["run"].unique().sort().to_list()
        # All cells have the same protocol: the fullest says how many judgements there should be.
        expected = max(part.height for part in parts.values()) or rows.height
        for cell, part in parts.items():
            # What is neither judged nor empty failed, whether its row says so or is not there.
            failed = expected - int((part["defined"] | part["empty"]).sum())
            for name, statistic in _ppl_statistics(part, runs, space.size, settings.ppl_drop_at).items():
                found[cell][name + tail] = Measured(statistic, space.resampler, failed, expected)


def _ppl_statistics(rows: pl.DataFrame, runs: list[int], size: int, drop_at: float) -> dict[str, Statistic]:
    """The definitions of `metrics.perplexity`, each as a statistic over `size` clusters."""
    clusters = rows["cluster"].to_numpy()
    cells = clusters * len(runs) + np.searchsorted(runs, rows["run"].to_numpy())

    def by_run(values: np.ndarray[Any, Any]) -> Floats:
        """(size, runs) sums of one value per row."""
        sums = np.bincount(cells, weights=values, minlength=size * len(runs)).astype(np.float64)
        return sums.reshape(size, len(runs))

    def count(marked: np.ndarray[Any, Any], among: np.ndarray[Any, Any]) -> RatioMean:
        """How many rows are marked: their share among rows of that kind, times the number of those."""
        total = max(1, int(among.sum()))
        ours, theirs = (by_run(values).sum(axis=1, keepdims=True) for values in (marked, among))
        return RatioMean(ours * total, theirs, ceiling=float(total))

    each, defined = rows["each"].to_numpy(), rows["defined"].to_numpy()
    kept = defined & (np.where(defined, each, np.inf) < drop_at)
    nll = np.where(defined, rows["value"].fill_null(0.0).to_numpy(), 0.0)
    tokens = np.where(defined, rows["weight"].fill_null(0.0).to_numpy(), 0.0)
    all_nll, all_tokens = (by_run(values).sum(axis=1, keepdims=True) for values in (nll, tokens))
    return {
        "ppl": RatioMean(by_run(np.where(kept, each, 0.0)), by_run(kept.astype(np.float64))),
        "ppl_median": Median(each[defined], clusters[defined], size),
        "ppl_pooled": RatioMean(all_nll, all_tokens, transform=np.exp),
        "ppl_dropped": count(defined & ~kept, defined),
        "ppl_empty": count(rows["empty"].to_numpy(), defined | rows["empty"].to_numpy()),
    }


def _add_distinct(
    found: Cells, generations: pl.DataFrame, prompts: pl.DataFrame, space: Space, settings: ResultSettings
) -> None:
    if not generations.height:
        return
    usable = {
        cell: int(part.select(pl.col("error").is_null().sum()).item())
        for cell, part in _parts(generations, found)
    }
    expected = int(generations.group_by("cell").len()["len"].max() or 0)  # type: ignore[arg-type]
    where = space.clusters.select("prompt_id", "cluster")
    for with_prompt, tail in ((True, ""), (False, "_continuation")):
        values = distinct.distinct_statistics(
            generations, prompts, with_prompt=with_prompt, group_by=settings.group_by
        ).join(where, on="prompt_id")
        for cell, part in _parts(values, found):
            for name in ("dist1", "dist2", "dist3"):
                statistic = plain_mean(space.spread(part["cluster"], part[name]))
                found[cell][name + tail] = Measured(
                    statistic, space.resampler, expected - usable[cell], expected, "continuations"
                )


def _add_items(found: Cells, scores: pl.DataFrame, settings: ResultSettings) -> None:
    """mmlu and clean_ppl, whose clusters are their own items."""
    for metric in ("mmlu", "clean_ppl"):
        rows = scores.filter(pl.col("metric") == metric)
        if not rows.height:
            continue
        # Sorted: the intervals do not depend on the order in which actors finished.
        items = rows.select("prompt_id").unique().sort("prompt_id").with_row_index("item")
        rows = rows.join(items, on="prompt_id", how="left", maintain_order="left")
        resampler = Resampler(
            np.zeros(items.height, dtype=np.int64), settings.bootstrap_samples, settings.seed
        )
        for cell, part in _parts(rows, found):
            good = part.filter(pl.col("value").is_not_null() & pl.col("value").is_not_nan())
            empty = part.filter(pl.col("error") == EMPTY)["item"].n_unique()
            weight = np.ones(good.height) if metric == "mmlu" else good["weight"].fill_null(0.0).to_numpy()
            value, total = (
                np.bincount(good["item"].to_numpy(), weights=column, minlength=items.height)[:, None].astype(
                    float
                )
                for column in (good["value"].to_numpy(), weight)
            )
            statistic = (
                RatioMean(value, total, ceiling=1.0)
                if metric == "mmlu"
                else RatioMean(value, total, transform=np.exp)
            )
            failed = items.height - empty - good["item"].n_unique()
            found[cell][metric] = Measured(statistic, resampler, failed, items.height)
