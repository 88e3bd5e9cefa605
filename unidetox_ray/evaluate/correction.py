"""The share of toxic texts, corrected for the errors of the scorer that counted them.

A scorer that misses some toxic texts and flags some clean ones measures another share than the true one. A sample of texts
with labels by people, scored by the same scorer at the same threshold, tells how far. Two corrections, for two kinds of sample:

`rogan-gladen`       the sample comes from anywhere; its sensitivity and specificity are taken to hold for the measured texts.
                     Rogan and Gladen (1978), "Estimating prevalence from the results of a screening test".
`prediction-powered` the sample is drawn at random from the measured texts themselves; nothing is assumed of the scorer.
                     Angelopoulos et al. (2023), "Prediction-powered inference", Science 382, with the weight of "PPI++"
                     (Angelopoulos, Duchi and Zrnic, 2023).

The unit is what was labelled. A sample of labelled texts corrects the share of texts over the threshold; it says nothing of TP,
which is a share of prompts, unless its rows are prompts with the label "one of the continuations is toxic" and their largest
score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import polars as pl

from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.metrics.stats import Floats, rule_of_three

Method = Literal["rogan-gladen", "prediction-powered"]
METHODS: tuple[Method, ...] = ("rogan-gladen", "prediction-powered")

#: Names that the two columns of a labelled sample go by.
TEXT_NAMES = ("text", "continuation", "comment_text", "comment")
LABEL_NAMES = ("label", "toxic", "is_toxic", "human_label")
_YES = {"1", "1.0", "true", "yes", "toxic"}
_NO = {"0", "0.0", "false", "no", "non-toxic", "not toxic", "nontoxic", "non_toxic", "clean"}


@dataclass(frozen=True)
class Estimate:
    """A corrected share with its interval, all in [0, 1], and what it was corrected with.

    labelled: rows of the sample that had a score. clipped: the estimate lay outside [0, 1] and was moved to its end, which
    happens where fewer texts are flagged than the scorer's own false alarms explain (or more than its hits).
    """

    value: float
    low: float
    high: float
    sensitivity: float
    specificity: float
    labelled: int
    method: str
    clipped: bool


@dataclass(frozen=True)
class Labelled:
    """What a scorer said of labelled units: flags and truths (n,) of 0.0 and 1.0; failed: how many it gave no score."""

    flags: Floats
    truths: Floats
    failed: int

    @property
    def positives(self) -> int:
        return int(self.truths.sum())

    @property
    def negatives(self) -> int:
        return len(self.truths) - self.positives

    @property
    def sensitivity(self) -> float:
        """Share of the toxic ones that were flagged."""
        return float((self.flags * self.truths).sum() / self.positives)

    @property
    def specificity(self) -> float:
        """Share of the clean ones that were not."""
        return float(((1 - self.flags) * (1 - self.truths)).sum() / self.negatives)


def labelled_of(
    scores: Sequence[float | None],
    labels: Sequence[bool],
    *,
    threshold: float = 0.5,
    where: str = "labelled sample",
) -> Labelled:
    """A sample from scores and labels in the same order; a null or NaN score takes no part and is counted.

    Flagged = strictly above the threshold, as everywhere here. DataError without rows of both classes.
    """
    if len(scores) != len(labels):
        raise DataError(f"{where}: {len(scores)} scores for {len(labels)} labels")
    pairs = [(s, t) for s, t in zip(scores, labels, strict=True) if s is not None and math.isfinite(s)]
    flags = np.array([score > threshold for score, _ in pairs], dtype=np.float64)
    truths = np.array([bool(label) for _, label in pairs], dtype=np.float64)
    sample = Labelled(flags, truths, len(scores) - len(pairs))
    if not sample.positives or not sample.negatives:
        missing = "toxic" if not sample.positives else "clean"
        raise DataError(
            f"{where}: no {missing} text among its {len(pairs)} rows with a score; both classes are needed to know the scorer's "
            "errors"
        )
    return sample


def read_labelled(path: Path) -> pl.DataFrame:
    """text (String), label (Boolean) of a csv, tsv, jsonl or parquet file; DataError naming the row that has neither.

    Columns: text or comment_text; label, toxic or is_toxic with 0/1, true/false, yes/no or toxic/clean.
    """
    from unidetox_ray.evaluate.reading import rows_of

    texts: list[str] = []
    labels: list[bool] = []
    names: tuple[str, str] | None = None
    for number, row in enumerate(rows_of(path), start=1):
        if names is None:
            names = (_named(row, TEXT_NAMES, path), _named(row, LABEL_NAMES, path))
        text, label = row.get(names[0]), _truth(row.get(names[1]))
        if not isinstance(text, str):
            raise DataError(
                f"{path} row {number}: {names[0]!r} holds no text; fill it in or leave the row out"
            )
        if label is None:
            shown = str(row.get(names[1]))[:40]
            raise DataError(
                f"{path} row {number}: {names[1]!r} holds {shown!r}; accepted: 0 or 1, true or false, toxic or clean"
            )
        texts.append(text)
        labels.append(label)
    return pl.DataFrame({"text": texts, "label": labels}, schema={"text": pl.String, "label": pl.Boolean})


def _named(row: Any, names: Sequence[str], path: Path) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        held = ", ".join(repr(str(name)[:40]) for name in list(row)[:20])
        raise DataError(f"{path}: no column {names[0]!r} (nor {', '.join(names[1:])}); it holds {held}")
    return found


def _truth(value: Any) -> bool | None:
    low = str(value).strip().lower()
    return True if low in _YES else False if low in _NO else None


def corrected_share(
    share: float,
    sample: Labelled,
    *,
    n: int,
    draws: Floats | None = None,
    method: Method = "rogan-gladen",
    confidence: float = 0.95,
) -> Estimate:
    """The true share of toxic units behind a measured share of flagged ones.

    share: in [0, 1]. n: how many independent units it was measured on (prompts, where their texts belong together). draws: its
    bootstrap distribution (samples,), by prompt where texts belong together; None = `share` is a plain share of n units.
    rogan-gladen has the interval of Lang and Reiczigel (2014), with as many units as the draws' variance stands for;
    prediction-powered has a normal one. ConfigError for an unknown method, DataError for a share or sample it cannot be used on, among them error rates
    under which no true share gives the measured one.
    """
    if method not in METHODS:
        raise ConfigError(f"correction {method!r} is not known; accepted: {', '.join(METHODS)}")
    if not 0 <= share <= 1 or n < 1:
        raise DataError(
            f"correction: a measured share of {share} over {n} units; it must lie in [0, 1], over at least one"
        )
    if method == "prediction-powered":
        value, low, high = _prediction_powered(share, sample, n, draws, confidence)
    else:
        gain = sample.sensitivity + sample.specificity - 1
        if gain <= 0:
            raise DataError(
                f"labelled sample: sensitivity {sample.sensitivity:.3f} and specificity {sample.specificity:.3f} add up to no more "
                "than 1, so the scorer tells toxic from clean no better than chance on it; another scorer or threshold is needed"
            )
        value = (share + sample.specificity - 1) / gain
        low, high = _lang_reiczigel(share, _effective(share, n, draws), sample, confidence)
        if high <= 0 or low >= 1:
            raise DataError(
                f"correction: {share:.1%} of the measured units are flagged, which the labelled sample's sensitivity "
                f"{sample.sensitivity:.3f} and specificity {sample.specificity:.3f} cannot explain at any true share, so they do not "
                "hold for these texts; label a random sample of the measured texts themselves"
            )
    inside = min(max(value, 0.0), 1.0)
    return Estimate(
        inside,
        min(max(low, 0.0), inside),
        max(min(high, 1.0), inside),
        sample.sensitivity,
        sample.specificity,
        len(sample.truths),
        method,
        inside != value,
    )


def _lang_reiczigel(share: float, n: float, sample: Labelled, confidence: float) -> tuple[float, float]:
    """Interval of the Rogan-Gladen estimate from three independent binomial counts.

    Lang and Reiczigel (2014), "Confidence limits for prevalence of disease adjusted for estimated sensitivity and
    specificity", Preventive Veterinary Medicine 113: a Wald interval around shares with pseudo-counts, shifted for its skew.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n_share, n_sens, n_spec = n + z * z, sample.positives + 2, sample.negatives + 2
    share = (n * share + z * z / 2) / n_share
    sens = (sample.positives * sample.sensitivity + 1) / n_sens
    spec = (sample.negatives * sample.specificity + 1) / n_spec
    gain = sens + spec - 1
    if gain <= 0:
        return 0.0, 1.0
    value = (share + spec - 1) / gain
    of_sens, of_spec = sens * (1 - sens) / n_sens, spec * (1 - spec) / n_spec
    shift = 2 * z * z * (value * of_sens - (1 - value) * of_spec)
    width = (
        z * math.sqrt(share * (1 - share) / n_share + value**2 * of_sens + (1 - value) ** 2 * of_spec) / gain
    )
    return value + shift - width, value + shift + width


def _effective(share: float, n: int, draws: Floats | None) -> float:
    """How many independent units would make the measured share vary as its draws do; n where they do not vary."""
    if draws is None:
        return n
    variance = float(np.var(draws[np.isfinite(draws)])) if np.isfinite(draws).any() else 0.0
    return share * (1 - share) / variance if variance > 0 else n


def _prediction_powered(
    share: float, sample: Labelled, n: int, draws: Floats | None, confidence: float
) -> tuple[float, float, float]:
    """mean(Y) + w (share - mean(f)) over labelled (Y, f), and its normal interval.

    PPI++ equation for the mean: w = cov(Y, f) / ((1 + m / n) var(f)), clipped to [0, 1], for m labelled of n units, as many
    as the draws' variance stands for; w = 1 is the estimator of the first paper, w = 0 the labelled sample alone.
    """
    flags, truths, labelled = sample.flags, sample.truths, len(sample.truths)
    spread = float(np.var(flags))
    covariance = float(np.mean((flags - flags.mean()) * (truths - truths.mean())))
    units = _effective(share, n, draws)
    weight = min(max(covariance / ((1 + labelled / units) * spread), 0.0), 1.0) if spread else 0.0
    value = float(truths.mean()) + weight * (share - float(flags.mean()))
    of_share = float(np.var(draws[np.isfinite(draws)])) if draws is not None else share * (1 - share) / n
    rest = truths - weight * flags
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    of_rest = float(np.var(rest, ddof=1)) / labelled if labelled > 1 else math.inf
    width = z * math.sqrt(weight**2 * of_share + of_rest)
    if of_rest == 0:  # the scorer agreed with every label: that bounds its errors, and does not exclude them
        width += rule_of_three(labelled)
    return value, value - width, value + width
