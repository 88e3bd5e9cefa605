"""content.json of a run folder as dataclasses; n-grams in them are raw text, to be masked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unidetox_ray.report import readers, text
from unidetox_ray.report.model import Metric


@dataclass(frozen=True)
class Alone:
    """A corpus as text. `words`: (word, mean TF-IDF weight), heaviest first. Missing numbers are None."""

    corpus: str
    texts: int
    empty: int
    tokens: float | None
    mean_words: float | None
    types: int
    distinct: float | None
    distinct_equal: float | None
    repeated: float | None
    duplicates: int
    compression: float | None
    words: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Gram:
    """An n-gram that one corpus uses more; z > 0 = more than the reference. `uses`, `texts`: there and in the reference."""

    n: int
    ngram: str
    z: float
    uses: tuple[int, int]
    texts: tuple[int, int]


@dataclass(frozen=True)
class Pair:
    """A corpus against the reference. `overlap`: name -> Jaccard index."""

    corpus: str
    reference: str
    overlap: dict[str, float | None]
    cosine: float | None
    shared_texts: int
    ours: tuple[Gram, ...]
    theirs: tuple[Gram, ...]


@dataclass(frozen=True)
class Judge:
    """A scorer ("toxicity") or classifier ("labels"). `numbers`: (corpus, label or "", mean, share)."""

    name: str
    kind: str
    about: dict[str, Any]
    at_limit: dict[str, int]
    numbers: tuple[tuple[str, str, Metric, Metric], ...]


@dataclass(frozen=True)
class Content:
    """The whole file."""

    reference: str
    equal_words: int
    min_count: int
    min_texts: int
    threshold: float
    corpora: tuple[Alone, ...]
    pairs: tuple[Pair, ...]
    judges: tuple[Judge, ...]


def read(path: Path, problems: list[str]) -> Content | None:
    """The file at `path`; None where it is absent, None and a problem where it is damaged."""
    stored = readers.read_json(path, problems, path.name)
    if stored is None:
        return None
    try:
        return _content(stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"{path.name} is damaged or of another version: {text.clean(error, 100)}")
        return None


def _content(stored: Mapping[str, Any]) -> Content:
    settings = stored["settings"]
    return Content(
        reference=_name(stored["reference"]),
        equal_words=int(stored["equal_words"]),
        min_count=int(settings["min_count"]),
        min_texts=int(settings["min_texts"]),
        threshold=float(settings["threshold"]),
        corpora=tuple(_alone(entry) for entry in stored["corpora"]),
        pairs=tuple(_pair(entry) for entry in stored["pairs"]),
        judges=tuple(_judge(entry) for entry in stored["judges"]),
    )


def _name(value: Any) -> str:
    return text.clean(value, 60)


def _real(value: Any) -> float | None:
    return float(value) if text.is_number(value) else None


def _alone(entry: Mapping[str, Any]) -> Alone:
    lengths = entry["lengths"]
    return Alone(
        corpus=_name(entry["corpus"]),
        texts=int(entry["texts"]),
        empty=int(entry["empty_texts_left_out"]),
        tokens=_real(lengths["tokens"]["total"]) if lengths["tokens"] else None,
        mean_words=_real(lengths["words"]["mean"]),
        types=int(entry["types"]),
        distinct=_real(entry["distinct"]["2"]),
        distinct_equal=_real(entry["distinct_at_equal_words"]["2"]),
        repeated=_real(entry["repeated"]["3"]),
        duplicates=int(entry["duplicates"]["same_words"]),
        compression=_real(entry["compression_ratio"]),
        words=tuple((str(word["word"]), float(word["weight"])) for word in entry["words_by_tf_idf"]),
    )


def _pair(entry: Mapping[str, Any]) -> Pair:
    def grams(name: str) -> tuple[Gram, ...]:
        return tuple(
            Gram(
                int(gram["n"]),
                str(gram["ngram"]),
                float(gram["z"]),
                (int(gram["count"]), int(gram["count_reference"])),
                (int(gram["texts"]), int(gram["texts_reference"])),
            )
            for gram in entry[name]
        )

    return Pair(
        corpus=_name(entry["corpus"]),
        reference=_name(entry["reference"]),
        overlap={str(name): _real(value) for name, value in entry["overlap"].items()},
        cosine=_real(entry["tf_idf_cosine"]),
        shared_texts=int(entry["shared_texts"]),
        ours=grams("distinctive"),
        theirs=grams("distinctive_of_reference"),
    )


def _judge(entry: Mapping[str, Any]) -> Judge:
    numbers = tuple(
        (_name(row["corpus"]), _name(row.get("label", "")), _metric(row["mean"]), _metric(row["share"]))
        for row in entry["numbers"]
    )
    return Judge(
        name=_name(entry["judge"]),
        kind=str(entry["kind"]),
        about=readers.mapping(entry["about"]),
        at_limit={_name(key): int(value) for key, value in (entry["texts_at_limit"] or {}).items()},
        numbers=numbers,
    )


def _metric(stored: Mapping[str, Any]) -> Metric:
    reals = [
        _real(stored.get(key)) for key in ("value", "ci_low", "ci_high", "diff", "diff_low", "diff_high")
    ]
    value, low, high, diff, diff_low, diff_high = reals
    reason = text.clean(stored.get("reason", ""), 200)
    return Metric(
        value, low, high, int(stored["n"]), diff, diff_low, diff_high, int(stored["failed"]), reason
    )
