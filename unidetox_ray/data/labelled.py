"""Labelled comments, to train and to judge a toxicity classifier with the six labels of `unitary/toxic-bert`.

What each source says about the six labels (null = not asked; it takes no part in the loss):

    davidson     class 0 (hate speech): toxic 1, identity_hate 1
                 class 1 (offensive):   toxic 1, identity_hate 0
                 class 2 (neither):     toxic 0, identity_hate 0; other labels null throughout
    paradetox    a sentence of column toxic: toxic 1; its paraphrases neutral1-3: toxic 0; other labels null
    toxic_spans  toxic 1 in every row, as all were drawn as toxic comments (spans unused); other labels null
    jigsaw       all six as given; -1 (unscored) is null, and a comment with six nulls is dropped
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field, model_validator

from unidetox_ray import schemas
from unidetox_ray.data import files
from unidetox_ray.data.base import Dataset, Options, Request, hash_share, need_path
from unidetox_ray.errors import DataError

Source = Literal["davidson", "paradetox", "toxic_spans", "jigsaw"]

#: Source -> its files, each as the names it goes by (globs), first match wins.
FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "davidson": (("davidson_labeled_data.csv", "labeled_data.csv"),),
    "paradetox": (("paradetox.tsv",),),
    "toxic_spans": (
        ("toxic_spans_tsd_train.csv", "tsd_train.csv"),
        ("toxic_spans_tsd_test.csv", "tsd_test.csv"),
    ),
    "jigsaw": (("jigsaw_sample_train.csv", "train.csv"), ("jigsaw_sample_test.csv", "test.csv")),
}

#: Davidson's class -> (toxic, identity_hate).
DAVIDSON = {"0": (1.0, 1.0), "1": (1.0, 0.0), "2": (0.0, 0.0)}

#: One row per comment before the split: text_id, text, key, source and the six labels. Rows of one `key` (a
#: sentence and its paraphrases) always go to the same split.
RAW: schemas.Schema = {
    "text_id": pl.String,
    "text": pl.String,
    "key": pl.String,
    "source": pl.String,
    **dict.fromkeys(schemas.LABELS, pl.Float64),
}


class LabelledOptions(Options):
    """Which sources train the classifier, and which only judge it."""

    train: tuple[Source, ...] = Field(default=("davidson", "paradetox"), min_length=1)
    """Sources split into train, dev and test by a hash of the text."""
    test: tuple[Source, ...] = ("toxic_spans", "jigsaw")
    """Sources that go to `test` whole."""
    dev_share: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of the training sources held out as `dev`."""
    test_share: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of the training sources held out as `test`."""
    pretrain_share: float = Field(default=1.0, gt=0, le=1)
    """Role "pretrain" only: share of the training sources' comments that is given as plain text."""

    @model_validator(mode="after")
    def _disjoint(self) -> LabelledOptions:
        doubled = sorted(
            {name for name in self.train + self.test if (self.train + self.test).count(name) > 1}
        )
        if doubled:
            raise ValueError(f"source {doubled[0]!r} is named twice; a source is in train or in test")
        return self


def load(role: str, request: Request) -> pl.DataFrame:
    """LABELLED, or TEXTS for "pretrain": the training sources outside `test`, target toxic or neutral.

    `path` is the folder with the sources' files. Texts are compared case-folded with blanks collapsed: a text
    that is in test leaves train and dev, a repeated text stays once, and one labelled both toxic and not is
    dropped (all counted).
    """
    options: LabelledOptions = request.options
    folder = need_path(
        request, "labelled", f"a folder with {', '.join(names[0][0] for names in FILES.values())}"
    )
    if not folder.is_dir():
        raise DataError(f"{folder}: data set 'labelled' needs the folder that holds its files, not one file")
    # "pretrain" reads the judging sources too: a base model must not have seen the comments the scorer is
    # judged on.
    parts = [_read(source, folder, request) for source in (*options.train, *options.test)]
    table = _divided(pl.concat(parts), options)
    table = _unique(table, request)
    if role == "pretrain":
        return _plain(table, options)
    request.notes["by_source"] = {
        source: dict(group.group_by("split").len().sort("split").rows())
        for (source,), group in table.group_by("source", maintain_order=True)
    }
    return table


def _read(source: str, folder: Path, request: Request) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    for names in FILES[source]:
        place = files.find(folder, names, source)
        rows += READERS[source](files.read_table(place, request), place.name)
    blank = [row for row in rows if not str(row["text"]).strip()]
    rows = [row for row in rows if str(row["text"]).strip()]
    unscored = [row for row in rows if all(row.get(label) is None for label in schemas.LABELS)]
    rows = [row for row in rows if any(row.get(label) is not None for label in schemas.LABELS)]
    request.notes[f"{source}_rows"] = len(rows)
    request.notes[f"{source}_empty_removed"] = len(blank)
    request.notes[f"{source}_unscored_removed"] = len(unscored)
    for index, row in enumerate(rows):
        row |= {"text_id": f"{source}-{index:06d}", "source": source, "key": row.get("key", row["text"])}
    return pl.DataFrame([{name: row.get(name) for name in RAW} for row in rows], schema=dict(RAW))


def _davidson(table: pl.DataFrame, where: str) -> list[dict[str, object]]:
    texts, classes = files.text_column(table, "tweet", where), files.text_column(table, "class", where)
    unknown = sorted(set(classes.unique()) - set(DAVIDSON))
    if unknown:
        raise DataError(f"{where}: unknown class {unknown[0]!r}; accepted: 0 hate, 1 offensive, 2 neither")
    return [
        {"text": text, "toxic": DAVIDSON[value][0], "identity_hate": DAVIDSON[value][1]}
        for text, value in zip(texts, classes, strict=True)
    ]


def _paradetox(table: pl.DataFrame, where: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    neutral = [files.text_column(table, f"neutral{number}", where) for number in (1, 2, 3)]
    for toxic, *rewrites in zip(files.text_column(table, "toxic", where), *neutral, strict=True):
        rows.append({"text": toxic, "key": toxic, "toxic": 1.0})
        # An empty cell is a paraphrase that was never written, not an empty comment.
        rows += [{"text": text, "key": toxic, "toxic": 0.0} for text in rewrites if text.strip()]
    return rows


def _toxic_spans(table: pl.DataFrame, where: str) -> list[dict[str, object]]:
    files.text_column(table, "spans", where)
    return [{"text": text, "toxic": 1.0} for text in files.text_column(table, "text", where)]


def _jigsaw(table: pl.DataFrame, where: str) -> list[dict[str, object]]:
    values = {"0": 0.0, "1": 1.0, "-1": None}
    columns = {label: files.text_column(table, label, where) for label in schemas.LABELS}
    for label, column in columns.items():
        unknown = sorted(set(column.unique()) - set(values))
        if unknown:
            raise DataError(f"{where}: {label} holds {unknown[0]!r}; accepted: 0, 1 and -1 (unscored)")
    return [
        {"text": text, **{label: values[column[index]] for label, column in columns.items()}}
        for index, text in enumerate(files.text_column(table, "comment_text", where))
    ]


READERS: dict[str, Callable[[pl.DataFrame, str], list[dict[str, object]]]] = {
    "davidson": _davidson,
    "paradetox": _paradetox,
    "toxic_spans": _toxic_spans,
    "jigsaw": _jigsaw,
}


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _divided(table: pl.DataFrame, options: LabelledOptions) -> pl.DataFrame:
    """`table` with `split`, and `folded` (the text as it is compared)."""
    splits = []
    for key, source in table.select("key", "source").iter_rows():
        share = hash_share(_folded(key), "labelled-split")
        if source in options.test or share < options.test_share:
            splits.append("test")
        else:
            splits.append("dev" if share < options.test_share + options.dev_share else "train")
    return table.with_columns(
        split=pl.Series(splits), folded=pl.Series([_folded(text) for text in table["text"]])
    )


def _unique(table: pl.DataFrame, request: Request) -> pl.DataFrame:
    """LABELLED with each folded text once: test keeps it before dev, dev before train."""
    mixed = pl.col("toxic").n_unique().over("folded") > 1
    consistent = table.filter(~mixed)
    rank = pl.col("split").replace_strict({"test": 0, "dev": 1, "train": 2}, return_dtype=pl.Int8)
    foreign = rank > rank.min().over("folded")
    apart = consistent.filter(~foreign)
    unique = apart.unique("folded", keep="first", maintain_order=True)
    request.notes.update(
        {
            "contradicting_labels_removed": table.height - consistent.height,
            "shared_between_splits_removed": consistent.height - apart.height,
            "duplicates_removed": apart.height - unique.height,
        }
    )
    return unique.select(list(schemas.LABELLED))


def _plain(table: pl.DataFrame, options: LabelledOptions) -> pl.DataFrame:
    kept = table.filter(pl.col("source").is_in(list(options.train)), pl.col("split") != "test")
    chosen = [hash_share(text, "labelled-pretrain") < options.pretrain_share for text in kept["text"]]
    target = pl.when(pl.col("toxic") == 1.0).then(pl.lit("toxic")).otherwise(pl.lit("neutral"))
    return kept.filter(pl.Series(chosen)).select("text_id", "text", "split", target=target)


DATASET = Dataset(
    name="labelled",
    roles=("scorer", "pretrain"),
    licence="davidson MIT; paradetox CC0-1.0; toxic_spans CC0-1.0; jigsaw CC0 (text CC BY-SA 3.0)",
    citation="Davidson et al. 2017; Logacheva et al. 2022 (ParaDetox); Pavlopoulos et al. 2021; Jigsaw 2018",
    options=LabelledOptions,
    load=load,
)
