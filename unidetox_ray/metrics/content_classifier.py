"""What a text classifier says of whole corpora: shares of its labels, toxicity of the texts, differences between corpora.

A judge writes rows of JUDGED, one per text; the functions here turn them into numbers with intervals. Texts are the
clusters of the bootstrap; two corpora are independent samples: their texts are not paired.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

from unidetox_ray.errors import ModelError
from unidetox_ray.families.loading import load_config
from unidetox_ray.metrics.classifier import ToxicityClassifier
from unidetox_ray.metrics.stats import (
    MIN_SAMPLES,
    Floats,
    Interval,
    Resampler,
    interval,
    plain_mean,
)
from unidetox_ray.schemas import Schema

#: One judgement of one text. `row` is the text's number among the corpus's texts; `values` one probability per label, null
#: where `error` says why; `at_limit`: the text fills all tokens that the judge reads (null = the judge has no such limit);
#: `about` is JSON with what the judge is.
JUDGED: Schema = {
    "corpus": pl.String,
    "row": pl.Int64,
    "judge": pl.String,
    "kind": pl.String,
    "values": pl.List(pl.Float64),
    "at_limit": pl.Boolean,
    "error": pl.String,
    "about": pl.String,
}


class Scorer(Protocol):
    """A toxicity scorer of `metrics.classifier`."""

    errors: list[str | None]
    sha256: str | None

    def score(self, texts: Sequence[str], token_budget: int = 16384) -> list[float | None]: ...


class ContentClassifier(ToxicityClassifier):
    """All labels of any sequence classifier from Hugging Face, loaded and batched as the toxicity classifier is.

    A multi-label head gives each label its own sigmoid, every other head a softmax over its labels.
    """

    def __init__(
        self, source: str, *, revision: str | None = None, sha256: str | None = None, device: str = "cpu"
    ) -> None:
        """source: folder or hub id. sha256: what model.safetensors must hash to. ModelError, ArtifactError."""
        names = _labels(source, revision)
        super().__init__(source, revision=revision, sha256=sha256, label=names[0], device=device)
        self.labels = names

    def probabilities(
        self, texts: Sequence[str], token_budget: int = 16384
    ) -> tuple[list[list[float] | None], list[bool | None]]:
        """(one probability in [0, 1] per label, in the order of `labels`, None where `errors` says why; at the limit?).

        At the limit: the text has at least `max_length` tokens, and what lies beyond was not read.
        """
        import torch

        from unidetox_ray.core.batching import in_batches, reason

        self.errors = [None] * len(texts)
        if not texts:
            return [], []
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        found: list[list[float] | None] = [None] * len(texts)
        for row, length in enumerate(lengths):
            if not length:
                self.errors[row] = "no token to judge"
        rows = [row for row, length in enumerate(lengths) if length]
        encoder = self._fast(sum(lengths))

        def work(batch: list[int]) -> None:
            with torch.inference_mode():
                logits = self._logits(encoder, encoded, batch)
                values = logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)
            for row, value in zip(batch, values.double().tolist(), strict=True):
                finite = all(map(math.isfinite, value))
                found[row] = value if finite else None
                self.errors[row] = None if finite else "the classifier gave no finite probability"

        def failed(row: int, error: Exception) -> None:
            self.errors[row] = reason(error)

        in_batches(rows, [lengths[row] for row in rows], self.budget(token_budget), work, failed)
        return found, [length >= self.max_length for length in lengths]

    def about(self) -> dict[str, Any]:
        """What a reader needs in order to judge with the same model again."""
        return {
            "source": self.source,
            "revision": self.revision,
            "sha256": self.sha256,
            "labels": list(self.labels),
            "head": "multi-label" if self.multi_label else "single-label",
            "max_length": self.max_length,
        }


def _labels(source: str, revision: str | None) -> tuple[str, ...]:
    """The classifier's labels in the order of its logits; ModelError for a model without a trained classification head."""
    try:
        config: Any = load_config(source, revision=revision)
    except ModelError as error:
        raise ModelError(f"content classifier {source}: cannot be loaded ({error})") from error
    kinds = getattr(config, "architectures", None) or []
    # Transformers would put a random head on any other model and say so in a warning alone.
    if not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(
            f"content classifier {source}: holds {', '.join(kinds) or 'no known architecture'}; give a text-classification model"
        )
    if config.problem_type == "regression":
        raise ModelError(
            f"content classifier {source}: is a regression model without labels; give a text-classification model"
        )
    return tuple(str(config.id2label[index]) for index in sorted(config.id2label))


def judge_labels(
    name: str,
    corpus: str,
    texts: Sequence[str],
    classifier: ContentClassifier,
    token_budget: int = 16384,
    *,
    about: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """JUDGED rows of kind "labels". about: instead of the classifier's own."""
    values, at_limit = classifier.probabilities(texts, token_budget)
    return _rows(corpus, name, "labels", values, at_limit, classifier.errors, about or classifier.about())


def judge_toxicity(
    name: str,
    corpus: str,
    texts: Sequence[str],
    scorer: Scorer,
    about: Mapping[str, Any],
    token_budget: int = 16384,
) -> pl.DataFrame:
    """JUDGED rows of kind "toxicity", one value in [0, 1] each."""
    scores = scorer.score(texts, token_budget=token_budget)
    values = [None if score is None else [score] for score in scores]
    return _rows(corpus, name, "toxicity", values, [None] * len(texts), scorer.errors, about)


def _rows(
    corpus: str,
    judge: str,
    kind: str,
    values: list[list[float] | None],
    at_limit: list[bool | None],
    errors: Sequence[str | None],
    about: Mapping[str, Any],
) -> pl.DataFrame:
    table = pl.DataFrame(
        {"values": values, "at_limit": at_limit, "error": list(errors)},
        schema={name: JUDGED[name] for name in ("values", "at_limit", "error")},
    )
    fixed = {"corpus": corpus, "judge": judge, "kind": kind, "about": json.dumps(dict(about), sort_keys=True)}
    return table.with_columns(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        *(pl.lit(value, pl.String).alias(name) for name, value in fixed.items()),
    ).select(list(JUDGED))


def label_columns(values: Floats, head: str) -> Floats:
    """(texts, labels) float64 in {0, 1}: which labels a text is given; NaN rows stay NaN.

    head "single-label": the one of highest probability, the first of several; "multi-label": all above 0.5.
    """
    if head == "multi-label":
        given = (values > 0.5).astype(np.float64)
    else:
        given = np.zeros_like(values)
        seen = ~np.isnan(values).any(axis=1)
        given[seen, values[seen].argmax(axis=1)] = 1.0
    given[np.isnan(values).any(axis=1)] = np.nan
    return given


def numbers(
    columns: Mapping[str, Floats],
    reference: str,
    *,
    samples: int = MIN_SAMPLES,
    seed: int = 0,
    max_failed_share: float = 0.01,
) -> dict[str, dict[str, Any]]:
    """The mean of each corpus's (texts,) values in [0, 1], NaN = failed, with its interval and difference to `reference`.

    By corpus: value, ci_low, ci_high, n, failed, diff, diff_low, diff_high. Intervals: 95 % percentile bootstrap over texts,
    rule of three where all are 0 or 1. A corpus that lost more than max_failed_share of its texts has no value but a
    `reason`, and then no difference is taken with it.
    """
    means = {}
    for corpus, values in columns.items():
        statistic = plain_mean(values, ceiling=1.0)
        resampler = Resampler(np.zeros(len(values), dtype=np.int64), samples, seed)
        means[corpus] = interval(statistic, resampler.draws([statistic])[0])
    found: dict[str, dict[str, Any]] = {}
    for corpus, values in columns.items():
        failed, mean = int(np.isnan(values).sum()), means[corpus]
        entry: dict[str, Any] = dict.fromkeys(("value", "ci_low", "ci_high", "diff", "diff_low", "diff_high"))
        entry |= {"n": len(values) - failed, "failed": failed}
        if failed > max_failed_share * len(values):
            entry["reason"] = f"{failed} of {len(values)} texts failed, at most {max_failed_share:.2%} may"
        elif not math.isfinite(mean.value):
            entry["reason"] = "nothing to average"
        else:
            entry |= {"value": mean.value, "ci_low": mean.low, "ci_high": mean.high}
        found[corpus] = entry
    base = found.get(reference)
    for corpus, entry in found.items():
        if base is None or corpus == reference or entry["value"] is None or base["value"] is None:
            continue
        diff = difference(means[corpus], means[reference])
        entry |= {"diff": diff.value, "diff_low": diff.low, "diff_high": diff.high}
    return found


def difference(ours: Interval, theirs: Interval) -> Interval:
    """ours - theirs for independent samples, from the intervals of both.

    Each end of the difference lies as far out as the ends that make it so, added as squares; a share of 0 keeps its rule of
    three. Source: Newcombe (1998), method 10, for shares; Zou and Donner (2008) for any two intervals.
    """
    value = ours.value - theirs.value
    low = math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    high = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return Interval(value, value - low, value + high)
