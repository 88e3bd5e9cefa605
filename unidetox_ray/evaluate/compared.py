"""Sources against a reference, prompt by prompt: difference with its interval, effect size, p-value.

Only prompts that both sources continued, and that have a score in both, count; what is left out is counted and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from unidetox_ray.evaluate.measured import MEASURES, Pool, ends, judged
from unidetox_ray.evaluate.paired import holm, sign_flip, standardised
from unidetox_ray.metrics.space import Space
from unidetox_ray.metrics.stats import Floats, RatioMean, macro_mean, paired_difference


@dataclass(frozen=True)
class Pair:
    """Two sources on the prompts they share. shared: keys; other counts say what is left out."""

    source: str
    reference: str
    shared: pl.DataFrame
    only_source: int
    only_reference: int
    other_prompt: int
    reason: str | None = None


def pair_of(
    source: str, reference: str, tables: Mapping[str, pl.DataFrame], anonymous: frozenset[str]
) -> Pair:
    """Which prompts the two share. anonymous: sources whose rows name no prompt, which nothing can be paired with."""
    mine, theirs = (_prompts(tables[name]) for name in (source, reference))
    both = mine.join(theirs, on="prompt_id", suffix="_reference")
    same = both.filter(
        pl.col("prompt_key").is_null() | pl.col("prompt_key_reference").is_null()
        | (pl.col("prompt_key") == pl.col("prompt_key_reference"))
    )  # fmt: skip
    # Domains are the reference's: the source's file may not name any.
    shared = theirs.join(same.select("prompt_id"), on="prompt_id", how="semi").select(
        "prompt_id", "domain", "distribution"
    )
    nameless = sorted({source, reference} & anonymous)
    reason = None
    if nameless:
        reason, shared = f"the rows of {nameless[0]} name no prompts", shared.clear()
    elif not shared.height:
        reason = "they share no prompt"
    return Pair(
        source,
        reference,
        shared,
        mine.height - both.height,
        theirs.height - both.height,
        both.height - same.height,
        reason,
    )


def _prompts(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("key").agg(
        pl.col("domain").first(), pl.col("distribution").first(), pl.col("prompt_key").drop_nulls().first()
    ).rename({"key": "prompt_id"})  # fmt: skip


@dataclass(frozen=True)
class _Waiting:
    """One comparison whose resamples are still to be drawn."""

    head: dict[str, Any]
    space: Space
    ours: RatioMean
    theirs: RatioMean
    differences: Floats
    weights: Floats


class Comparisons:
    """Comparisons that share the draws of a pool: `add` them all, `pool.draw()`, then `results`."""

    def __init__(self, pool: Pool, threshold: float, seed: int) -> None:
        self.pool, self.threshold, self.seed = pool, threshold, seed
        self._waiting: list[_Waiting] = []
        self._withheld: list[dict[str, Any]] = []

    def add(self, pair: Pair, tables: Mapping[str, pl.DataFrame], scorers: Sequence[str]) -> None:
        for scorer in scorers:
            head = {
                "source": pair.source, "reference": pair.reference, "scorer": scorer,
                "not_shared": {
                    "only_source": pair.only_source, "only_reference": pair.only_reference, "other_prompt": pair.other_prompt,
                },
            }  # fmt: skip
            if pair.reason is not None:
                self._withheld.append(head | {"measures": {}, "n": 0, "reason": pair.reason})
                continue
            space = self.pool.space(pair.shared)
            sides = [
                judged(
                    name,
                    scorer,
                    tables[name].filter(pl.col("key").is_in(pair.shared["prompt_id"].implode())),
                    space,
                    self.threshold,
                )
                for name in (pair.source, pair.reference)
            ]
            for measure in MEASURES:
                self._add(
                    head | {"measure": measure}, space, sides[0].values[measure], sides[1].values[measure]
                )

    def _add(self, head: dict[str, Any], space: Space, ours: Floats, theirs: Floats) -> None:
        both = np.isfinite(ours) & np.isfinite(theirs)
        # A domain that lost every pair would leave the mean over domains undefined: the others are compared.
        codes = [code for code in range(len(space.domains)) if (both & (space.domain_codes == code)).any()]
        weights = np.zeros(space.size)
        for code in codes:
            inside = both & (space.domain_codes == code)
            weights[inside] = 1.0 / (len(codes) * inside.sum())
        sides = [
            self.pool.add(
                space, macro_mean(np.where(both, values, np.nan), space.domain_codes, codes, ceiling=1.0)
            )
            for values in (ours, theirs)
        ]
        self._waiting.append(
            _Waiting(head, space, sides[0], sides[1], np.where(both, ours - theirs, 0.0)[both], weights[both])
        )

    def results(self) -> list[dict[str, Any]]:
        """One entry per source and scorer; p-values of one measure are corrected for all of them together."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        tests = []
        for each in self._waiting:
            draws = self.pool.of(each.ours), self.pool.of(each.theirs)
            diff = paired_difference(each.space.resampler, each.ours, each.theirs, draws=draws)
            test = sign_flip(each.weights * each.differences, seed=self.seed)
            head = dict(each.head)
            measure = head.pop("measure")
            entry = found.setdefault((head["source"], head["scorer"]), head | {"n": test.n, "measures": {}})
            nothing = test.n == 0
            entry["measures"][measure] = {
                **{name.replace("value", "diff").replace("ci_", "diff_"): end for name, end in ends(diff).items()},
                "source_value": None if nothing else each.ours.value,
                "reference_value": None if nothing else each.theirs.value,
                "cohens_d": standardised(each.differences),
                "prompts_lower": int((each.differences < 0).sum()), "prompts_higher": int((each.differences > 0).sum()),
                "prompts_equal": int((each.differences == 0).sum()), "p": None if nothing else test.p, "p_holm": None,
                "test": test.method, "n": test.n,
            }  # fmt: skip
            if nothing:
                entry["reason"] = "no prompt has a score in both"
            else:
                tests.append((measure, entry["measures"][measure]))
        for measure in MEASURES:
            family = [values for name, values in tests if name == measure]
            for values, p in zip(family, holm([values["p"] for values in family]), strict=True):
                values["p_holm"] = p
        return [*found.values(), *self._withheld]
