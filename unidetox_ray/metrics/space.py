"""Clusters of prompts: what is resampled together, and in which domain each of them lies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.metrics.stats import Floats, Ints, Resampler

GroupBy = Literal["prompt_id", "prompt_text"]


def cluster_table(prompts: pl.DataFrame, group_by: GroupBy = "prompt_id") -> pl.DataFrame:
    """Which samples are judged together: prompt_id (String), cluster (Int64, 0 …), domain, distribution.

    "prompt_text": prompts of one domain with equal text pool their samples, as released (U:416, defect 27).
    """
    if group_by not in ("prompt_id", "prompt_text"):
        raise ConfigError(f"evaluate.group_by: {group_by!r} is not known; accepted: prompt_id, prompt_text")
    duplicated = prompts.filter(pl.col("prompt_id").is_duplicated())
    if duplicated.height:
        raise DataError(
            f"prompts: prompt_id {duplicated['prompt_id'][0]!r} stands in more than one row; ids must be unique"
        )
    keys = ["prompt_id"] if group_by == "prompt_id" else ["domain", "prompt"]
    firsts = prompts.select(keys).unique(maintain_order=True).with_row_index("cluster")
    return prompts.join(firsts, on=keys, how="left", maintain_order="left").select(
        "prompt_id", pl.col("cluster").cast(pl.Int64), "domain", "distribution"
    )


@dataclass(frozen=True)
class Space:
    """The clusters of prompts that all cells share.

    clusters: see `cluster_table`. domain_codes: (size,) the domain of each cluster, as its place in `domains`, which
    maps each domain to "id" or "ood". resampler: draws whole clusters, domain by domain.
    """

    clusters: pl.DataFrame
    domain_codes: Ints
    domains: dict[str, str]
    resampler: Resampler

    @classmethod
    def of(
        cls, prompts: pl.DataFrame, group_by: GroupBy, samples: int, seed: int,
        accepted: Collection[str] | None = ("id", "ood"),
    ) -> Space:  # fmt: skip
        """prompts: PROMPTS rows, all of them used. samples, seed: those of the bootstrap. accepted: distributions, None =
        any. DataError, ConfigError.
        """
        clusters = cluster_table(prompts, group_by)
        domains: dict[str, str] = {}
        for domain, distribution in (
            clusters.select("domain", "distribution").unique(maintain_order=True).iter_rows()
        ):
            known = accepted is None or distribution in accepted
            if domains.setdefault(domain, distribution) != distribution or not known:
                raise DataError(
                    f"prompts: domain {domain!r} has distribution {distribution!r}; each domain is all id or all ood"
                )
        firsts = clusters.unique("cluster", keep="first", maintain_order=True).sort("cluster")
        codes = {domain: code for code, domain in enumerate(domains)}
        numbers = np.array([codes[domain] for domain in firsts["domain"]], dtype=np.int64)
        return cls(clusters, numbers, domains, Resampler(numbers, samples, seed))

    @property
    def size(self) -> int:
        return len(self.domain_codes)

    def spread(self, clusters: pl.Series, values: pl.Series) -> Floats:
        """(size,) float64 of values by cluster, NaN where there is none; each cluster stands there at most once."""
        spread = np.full(self.size, np.nan)
        spread[clusters.to_numpy()] = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return spread
