"""Content analysis of corpus files: what `unidetox content` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unidetox_ray.errors import ConfigError
from unidetox_ray.report.text import MISSING, clean, count, interval, number, percent, sample
from unidetox_ray.table import aligned

#: Keys of content.json under which words of the corpora stand.
WORD_KEYS = ("ngram", "word")
SHOWN = 8


def labels(paths: Sequence[Path]) -> dict[str, Path]:
    """A label per file: its name without suffix, with its folder's where names are equal, numbered where that is too.

    ConfigError when there are fewer than two or one stands twice.
    """
    if len(paths) < 2:
        raise ConfigError(
            f"content: {len(paths)} corpus file given; give two or more, the reference among them"
        )
    resolved = Counter(path.expanduser().absolute() for path in paths)
    twice = [path for path, times in resolved.items() if times > 1]
    if twice:
        raise ConfigError(f"content: {twice[0].name} is given twice; a corpus is compared with another one")
    stems = Counter(path.stem for path in paths)
    found: dict[str, Path] = {}
    for path in paths:
        label = path.stem if stems[path.stem] == 1 else f"{path.absolute().parent.name}/{path.stem}"
        number_of, base = 2, label
        while label in found:
            label, number_of = f"{base} ({number_of})", number_of + 1
        found[label] = path
    return found


def content_of(
    paths: Sequence[Path],
    *,
    reference: Path | None = None,
    classifiers: Sequence[str] = (),
    revision: str | None = None,
    display: Any,
) -> dict[str, Any]:
    """`metrics.content.analyse` of files. reference: one of them, None = the first. classifiers: hub ids or folders.

    display: a `stages.context.Display`. ConfigError, DataError, ModelError.
    """
    import polars as pl

    from unidetox_ray.metrics import content

    named = labels(paths)
    wanted = [label for label, path in named.items() if reference in (None, path)]
    if not wanted:
        raise ConfigError(
            f"--reference {reference}: is not among the corpora; give it as one of the files too"
        )
    if revision is not None and len(classifiers) != 1:
        raise ConfigError(f"--revision {revision}: names one classifier's; give --classifier once")
    judged = _judged(named, classifiers, revision, display)
    return content.analyse(named, wanted[0], judged=pl.concat(judged) if judged else None)


def _judged(
    named: Mapping[str, Path], classifiers: Sequence[str], revision: str | None, display: Any
) -> list[Any]:
    if not classifiers:
        return []
    import torch

    from unidetox_ray.metrics import content
    from unidetox_ray.metrics.content_classifier import ContentClassifier, judge_labels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = [ContentClassifier(source, revision=revision, device=device) for source in classifiers]
    texts = {label: content.read(path).texts for label, path in named.items()}
    total, done, tables = len(opened) * sum(map(len, texts.values())), 0, []
    with display.task("labels", "texts") as advance:
        for classifier in opened:
            # A folder's path belongs to this machine; its last part and the hash say which model it was.
            name = Path(classifier.source).name if Path(classifier.source).is_dir() else classifier.source
            for label, found in texts.items():
                advance(done, total)
                about = classifier.about() | {"source": name}
                tables.append(judge_labels(name, label, found, classifier, about=about))
                done += len(found)
                advance(done, total)
    return tables


def masked(value: Any) -> Any:
    """The same JSON value with every word of a corpus masked to its first letter."""
    if isinstance(value, Mapping):
        return {
            key: sample(str(item), False, 200) if key in WORD_KEYS else masked(item)
            for key, item in value.items()
        }
    return [masked(item) for item in value] if isinstance(value, list) else value


def table(value: Mapping[str, Any], *, show_text: bool) -> str:
    """The analysis for a terminal: a line per corpus, a line per label, then each pair with its distinctive n-grams."""
    heads: tuple[str, ...] = (
        "corpus", "texts", "tokens", "words/text", "types", "distinct-2", "at equal size", "repeated-3", "duplicates", "compression",
    )  # fmt: skip
    rows = [heads]
    for entry in value["corpora"]:
        lengths = entry["lengths"]
        rows.append(
            (
                clean(entry["corpus"], 40), count(entry["texts"]), count(lengths["tokens"]["total"]) if lengths["tokens"] else MISSING,
                number(lengths["words"]["mean"]), count(entry["types"]), number(entry["distinct"]["2"]),
                number(entry["distinct_at_equal_words"]["2"]), percent(entry["repeated"]["3"]),
                count(entry["duplicates"]["same_words"]), number(entry["compression_ratio"]),
            )
        )  # fmt: skip
    lines = aligned(rows)
    for judge in value["judges"]:
        lines += ["", f"{clean(judge['judge'], 80)}: share of texts by label"]
        label_heads = (
            "label",
            "corpus",
            "share",
            "95 %",
            f"Δ to {clean(value['reference'], 40)}",
            "95 %",
            "failed",
        )
        lines += aligned([label_heads, *(_label(entry) for entry in judge["numbers"])])
    for pair in value["pairs"]:
        overlap = ", ".join(f"{name} {number(index)}" for name, index in pair["overlap"].items())
        lines += ["", f"{clean(pair['corpus'], 40)} against {clean(pair['reference'], 40)}: {overlap}"]
        lines.append(f"  TF-IDF cosine {number(pair['tf_idf_cosine'])}, shared texts {pair['shared_texts']}")
        for side, owner in (("distinctive", "corpus"), ("distinctive_of_reference", "reference")):
            for n in (1, 2, 3):
                grams = [gram for gram in pair[side] if gram["n"] == n][:SHOWN]
                shown = ", ".join(
                    f"{sample(gram['ngram'], show_text, 80)} ({number(gram['z'], signed=True)})"
                    for gram in grams
                )
                lines.append(f"  more in {clean(pair[owner], 40)}, n = {n}: {shown or MISSING}")
    if not show_text:
        lines += ["", "Words are masked to their first letter; --show-text shows them."]
    return "\n".join(lines)


def _label(entry: Mapping[str, Any]) -> tuple[str, ...]:
    share = entry["share"]
    return (
        clean(entry.get("label", ""), 40), clean(entry["corpus"], 40), number(share["value"]),
        interval(share["ci_low"], share["ci_high"]), number(share["diff"], signed=True),
        interval(share["diff_low"], share["diff_high"], signed=True), count(share["failed"]),
    )  # fmt: skip
