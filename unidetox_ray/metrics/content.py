"""Content analysis of corpora: what each is like as text, and what sets it apart from a reference corpus.

The paper claims that distilled text holds less politically biased content (abstract) and gives no code for it; this is this
project's own reading of that: distinctive n-grams, TF-IDF, overlap of vocabularies, length and repetition, and any text
classifier's labels. Nothing here trains or samples; judgements by models come in as a table (`content_classifier.JUDGED`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from unidetox_ray.artifacts import write_json, write_parquet
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.metrics import content_classifier as judged_texts
from unidetox_ray.metrics import content_ngrams as ngrams
from unidetox_ray.metrics import content_texts
from unidetox_ray.metrics.stats import MIN_SAMPLES, Floats

WARNING = "Words of the corpora stand here as they are, and can be hateful."


@dataclass(frozen=True)
class ContentSettings:
    """What the numbers depend on beside the texts."""

    prior_share: float = 1.0
    """Pseudo-counts of the log-odds' prior for each n-gram of the smaller corpus: the more, the less a rare n-gram counts."""
    min_count: int = 5
    """n-grams with fewer uses in both corpora together are not listed."""
    min_texts: int = 3
    """Nor those in fewer texts: one text that repeats itself says little of a corpus."""
    top: int = 15
    """Distinctive n-grams listed for each side and each n, and words by TF-IDF."""
    top_types: tuple[int, ...] = (100, 1000)
    """Overlap of so many most frequent words."""
    threshold: float = 0.5
    """A text is toxic when its score is strictly greater."""
    bootstrap: int = MIN_SAMPLES
    seed: int = 0
    max_failed_share: float = 0.01


@dataclass(frozen=True)
class Corpus:
    """The texts of a file, empty ones left out. tokens: of each text, where the file says (n_tokens), else None."""

    texts: list[str]
    tokens: list[int] | None
    empty: int
    sha256: str


def read(path: str | Path) -> Corpus:
    """A corpus of `data.text.read_corpus`'s formats: csv, tsv, jsonl, json or parquet with `text` or `Text`. DataError."""
    from unidetox_ray.data.text import read_corpus

    loaded = read_corpus(path)
    texts = loaded.table["text"].to_list()
    tokens = None
    if Path(path).suffix == ".parquet":
        table = pl.read_parquet(path)
        if "n_tokens" in table.columns and "text" in table.columns:
            kept = table.filter(pl.col("text").str.strip_chars() != "")["n_tokens"]
            tokens = None if kept.null_count() else kept.to_list()
    return Corpus(texts, tokens, loaded.notes["empty_removed"], loaded.sha256)


def analyse(
    corpora: Mapping[str, str | Path],
    reference: str,
    *,
    classifiers: Mapping[str, judged_texts.ContentClassifier] | None = None,
    judged: pl.DataFrame | None = None,
    settings: ContentSettings | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Every corpus as text, and every corpus against `reference`, as one JSON value; docs/metrics.md names its keys.

    corpora: label -> corpus file. classifiers: name -> opened classifier, asked here. judged: JUDGED rows made elsewhere, of
    texts in the order of `read`. folder: also write content.json (this value) and content.parquet (every n-gram that was
    compared) there. ConfigError, DataError.
    """
    settings = settings or ContentSettings()
    if reference not in corpora:
        raise ConfigError(f"content: the reference {reference!r} is not among {', '.join(corpora)}")
    read_in = {label: read(path) for label, path in corpora.items()}
    rows = [] if judged is None else [judged]
    for name, classifier in (classifiers or {}).items():
        rows += [
            judged_texts.judge_labels(name, label, corpus.texts, classifier)
            for label, corpus in read_in.items()
        ]
    table = pl.concat(rows) if rows else pl.DataFrame(schema=dict(judged_texts.JUDGED))
    judges = [
        {"judge": name, **_judgements(part, read_in, reference, settings)}
        for (_, name), part in table.group_by("kind", "judge", maintain_order=True)
    ]

    words = {label: ngrams.word_table(corpus.texts) for label, corpus in read_in.items()}
    counts = {label: ngrams.gram_counts(found) for label, found in words.items()}
    weights = ngrams.tf_idf(words, {label: len(corpus.texts) for label, corpus in read_in.items()})
    smallest = min(found.height for found in words.values())
    compared = []
    pairs = []
    for label in corpora:
        if label != reference:
            found = ngrams.compare(
                counts[label], counts[reference], prior_share=settings.prior_share, min_count=settings.min_count,
                min_texts=settings.min_texts,
            )  # fmt: skip
            compared.append(
                found.select(pl.lit(label).alias("corpus"), pl.lit(reference).alias("reference"), pl.all())
            )
            pair = _pair(counts[label], counts[reference], found, settings)
            pair["tf_idf_cosine"] = _finite(ngrams.cosine(weights, label, reference))
            pair["shared_texts"] = len(set(read_in[label].texts) & set(read_in[reference].texts))
            pairs.append({"corpus": label, "reference": reference, **pair})
    value = {
        "warning": WARNING,
        "settings": asdict(settings),
        "reference": reference,
        "equal_words": smallest,
        "corpora": [
            {"corpus": label, **_alone(corpus, words[label], counts[label], smallest)}
            | {"words_by_tf_idf": _heaviest(weights, label, settings.top)}
            for label, corpus in read_in.items()
        ],
        "pairs": pairs,
        "judges": judges,
    }
    if folder is not None:
        write_json(folder / "content.json", value)
        write_parquet(folder / "content.parquet", pl.concat(compared) if compared else _no_pairs())
    return value


def _alone(corpus: Corpus, words: pl.DataFrame, counts: pl.DataFrame, equal_words: int) -> dict[str, Any]:
    return {
        "sha256": corpus.sha256,
        "texts": len(corpus.texts),
        "empty_texts_left_out": corpus.empty,
        "lengths": content_texts.lengths(corpus.texts, words, corpus.tokens),
        "types": counts.filter(pl.col("n") == 1).height,
        "distinct": content_texts.distinct(words),
        "distinct_at_equal_words": content_texts.distinct(words, equal_words),
        "repeated": content_texts.repeated(words),
        "duplicates": content_texts.duplicates(corpus.texts, words),
        "compression_ratio": content_texts.compression_ratio(corpus.texts),
    }


def _pair(
    counts: pl.DataFrame, reference: pl.DataFrame, found: pl.DataFrame, settings: ContentSettings
) -> dict[str, Any]:
    overlap = {f"jaccard_{n}": _finite(ngrams.jaccard(counts, reference, n)) for n in ngrams.ORDERS} | {
        f"jaccard_top_{top}": _finite(ngrams.jaccard(counts, reference, top=top))
        for top in settings.top_types
    }
    distinctive: dict[str, list[dict[str, Any]]] = {"distinctive": [], "distinctive_of_reference": []}
    for n in ngrams.ORDERS:
        part = found.filter(pl.col("n") == n)
        distinctive["distinctive"] += part.filter(pl.col("z") > 0).head(settings.top).to_dicts()
        other = part.filter(pl.col("z") < 0).sort("z", "ngram").head(settings.top)
        distinctive["distinctive_of_reference"] += other.to_dicts()
    return {"overlap": overlap, "compared_ngrams": found.height, **distinctive}


def _heaviest(weights: pl.DataFrame, label: str, top: int) -> list[dict[str, Any]]:
    return weights.filter(pl.col("corpus") == label).head(top).select("word", "weight", "texts").to_dicts()


def _judgements(
    rows: pl.DataFrame, corpora: Mapping[str, Corpus], reference: str, settings: ContentSettings
) -> dict[str, Any]:
    """One judge's numbers: per corpus the share of each label (or mean score and share toxic), and what the judge is."""
    about = json.loads(rows["about"][0])
    toxicity = rows["kind"][0] == "toxicity"
    labels: Sequence[str] = ["toxic"] if toxicity else about["labels"]
    values = {}
    for label, corpus in corpora.items():
        part = rows.filter(pl.col("corpus") == label).sort("row")
        if part["row"].to_list() != list(range(len(corpus.texts))):
            raise DataError(
                f"content: judgements of {label!r} are of {part.height} texts, the corpus has {len(corpus.texts)}"
            )
        failed = [math.nan] * len(labels)
        values[label] = np.array(
            [failed if row is None else row for row in part["values"].to_list()], dtype=np.float64
        ).reshape(-1, len(labels))

    def measured(columns: Mapping[str, Floats]) -> dict[str, dict[str, Any]]:
        return judged_texts.numbers(
            columns, reference, samples=settings.bootstrap, seed=settings.seed,
            max_failed_share=settings.max_failed_share,
        )  # fmt: skip

    entries: list[dict[str, Any]] = []
    if toxicity:
        scores = {label: found[:, 0] for label, found in values.items()}
        above = {
            label: np.where(np.isnan(found), np.nan, found > settings.threshold)
            for label, found in scores.items()
        }
        mean, share = measured(scores), measured(above)
        entries = [{"corpus": label, "mean": mean[label], "share": share[label]} for label in corpora]
    else:
        given = {label: judged_texts.label_columns(found, about["head"]) for label, found in values.items()}
        for index, name in enumerate(labels):
            share = measured({label: found[:, index] for label, found in given.items()})
            mean = measured({label: found[:, index] for label, found in values.items()})
            entries += [
                {"corpus": label, "label": name, "mean": mean[label], "share": share[label]}
                for label in corpora
            ]
    at_limit = {
        label: int(rows.filter(pl.col("corpus") == label)["at_limit"].sum() or 0) for label in corpora
    }
    return {
        "kind": rows["kind"][0],
        "about": about,
        "texts_at_limit": None if rows["at_limit"].null_count() == rows.height else at_limit,
        "numbers": entries,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _no_pairs() -> pl.DataFrame:
    empty = pl.DataFrame(schema=ngrams.GRAMS)
    table = ngrams.compare(empty, empty)
    return table.select(
        pl.lit(None, pl.String).alias("corpus"), pl.lit(None, pl.String).alias("reference"), pl.all()
    )
