"""DGHS, the toxic text of UniDetox: hateful sentences about 34 targets (Vidgen et al. 2021).

The filter is the released code's (D:54-71): `label == "hate"` and `target` *equal* to one of 34 codes. Rows
with several targets ("wom, jew"), round 1 ("notgiven") and every disability code therefore drop out; do not
split on commas.

The hub repository holds v0.2.2 and v0.2.3, and the released code read both at once, so it trained on every
sentence twice (reference/unidetox.md 4.1). `version: both` repeats that; the default reads v0.2.3 alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from unidetox_ray.data import files, hub
from unidetox_ray.data.base import Dataset, Options, Request, hash_share
from unidetox_ray.errors import ConfigError, DataError

HUB_ID = "LennardZuendorf/Dynamically-Generated-Hate-Speech-Dataset"

#: Hub file of each version -> sha256 of the published bytes, in the order in which `both` reads them.
FILES = {
    "v0.2.2": "Dynamically Generated Hate Dataset v0.2.2.csv",
    "v0.2.3": "Dynamically Generated Hate Dataset v0.2.3.csv",
}
PUBLISHED = {
    "v0.2.2": "1be97ea2b0000cdada09a89d24f4d008ea1eeb6edfb237664c749775d9e408cc",
    "v0.2.3": "6e0aa7e598ab5b648cb1f0b48626a3e5f2e39a5abbd9fee998efa5a0b6cab4ca",
}
#: An already filtered v0.2.3, one {"text"} a line.
FILTERED_FILE = "dghs_to_detox.jsonl"

#: Released code D:54-71. The spelling is the CSV's (dotted), not the README's.
_CODES = """
    wom trans gendermin bis gay gay.man gay.wom
    mixed.race ethnic.minority indig indig.wom non.white bla bla.wom bla.man asi asi.wom asi.east asi.south
    asi.chin asi.pak arab eastern.europe russian pol hispanic immig asylum ref for
    jew mus mus.wom other.religion
"""
TARGETS = frozenset(_CODES.split())

COLUMNS = ("text", "label", "target", "split")

#: Rows the filter must leave, lowest and highest. v0.2.3: counted on an independent copy; both: from the
#: published checkpoint's name, 15,126 = 3 epochs x 5,042 steps of 4 rows (reference/datasets.md 1).
TOTAL = {"v0.2.3": (12_575, 12_575), "both": (25_150, 25_152)}
TRAIN = {"both": (20_165, 20_168)}

DEV_SHARE = 0.1


class DghsOptions(Options):
    """How to read DGHS."""

    version: Literal["v0.2.3", "both"] = "v0.2.3"
    """v0.2.3 = one version, each text once; both = as released, each text twice."""
    splits: tuple[Literal["train", "dev", "test"], ...] = Field(default=("train",), min_length=1)
    """The source's splits that are trained on (they become `train`); the others keep their name."""
    check_counts: bool | Literal["auto"] = "auto"
    """Stop unless the filter leaves the known number of rows; auto = when the file has a full set's name."""


def load(role: str, request: Request) -> pl.DataFrame:
    """TEXTS: `target` is the DGHS code (null in the already filtered file); row order is the source's.

    `path`: nothing (hub), a folder holding the CSVs by their hub names or the filtered file, one CSV, or the
    filtered jsonl. Raises DataError when counts, labels or splits are not those of DGHS.
    """
    options: DghsOptions = request.options
    notes = request.notes
    parts, complete = _sources(request)
    filtered_file = all("label" not in table.columns for table in parts.values())
    kept = [
        _plain(table, version) if filtered_file else _filtered(table, version, request)
        for version, table in parts.items()
    ]
    if filtered_file:
        notes["split"] = (
            f"the filtered file has no splits: dev = {DEV_SHARE:.0%} of the texts by hash, the rest train"
        )
        if options.version == "both":
            # Both versions hold the same filtered rows, so reading one twice is what the released code saw.
            kept.append(kept[0].with_columns(pl.col("text_id") + "-again"))
    table = pl.concat(kept)
    notes["rows_after_filter"] = table.height
    if options.check_counts is True or (options.check_counts == "auto" and complete):
        _check_counts(table, options.version, with_splits=not filtered_file)
    if options.version == "v0.2.3":
        unique = table.unique("text", keep="first", maintain_order=True)
        notes["duplicates_removed"] = table.height - unique.height
        table = unique
    blank = table["text"].str.strip_chars() == ""
    notes["empty_removed"] = int(blank.sum())
    trained = pl.col("split").is_in(list(options.splits))
    return table.filter(~blank).with_columns(split=pl.when(trained).then(pl.lit("train")).otherwise("split"))


def _sources(request: Request) -> tuple[dict[str, pl.DataFrame], bool]:
    """Version -> raw table, and whether the source is named as the complete one."""
    versions = list(FILES) if request.options.version == "both" else ["v0.2.3"]
    path = request.path
    if path is None:
        local = "a folder with the hub's CSV file, or dghs_to_detox.jsonl ({'text'} a line, already filtered)"
        names = {version: FILES[version] for version in versions}
        return hub.fetch(HUB_ID, names, request, local=local, columns=COLUMNS), True
    if path.is_dir():
        if any((path / name).is_file() for name in FILES.values()) or not (path / FILTERED_FILE).is_file():
            places = {version: files.find(path, [FILES[version]], f"DGHS {version}") for version in versions}
            return {version: _read(place, version, request) for version, place in places.items()}, True
        path = path / FILTERED_FILE
    table = files.read_table(path, request)
    if "label" in table.columns and request.options.version == "both":
        raise ConfigError(
            f"data set 'dghs': version 'both' needs a folder with {' and '.join(FILES.values())!r}"
        )
    return {"v0.2.3": table}, path.name in {FILES["v0.2.3"], FILTERED_FILE}


def _read(path: Path, version: str, request: Request) -> pl.DataFrame:
    table = files.read_table(path, request)
    request.notes[f"published_bytes_{version}"] = request.sources[path.name] == PUBLISHED[version]
    return table


def _filtered(table: pl.DataFrame, version: str, request: Request) -> pl.DataFrame:
    where = f"DGHS {version}"
    for column in COLUMNS:
        files.text_column(table, column, where)
    for column, known in {"label": {"hate", "nothate"}, "split": {"train", "dev", "test"}}.items():
        unknown = sorted(set(table[column].unique()) - known)
        if unknown:
            raise DataError(f"{where}: unknown {column} {unknown[0]!r}; accepted: {', '.join(sorted(known))}")
    request.notes[f"rows_{version}"] = table.height
    kept = table.with_row_index("row").filter(
        pl.col("label") == "hate", pl.col("target").is_in(sorted(TARGETS))
    )
    return kept.select(_id(version), "text", "split", "target")


def _plain(table: pl.DataFrame, version: str) -> pl.DataFrame:
    texts = files.text_column(table, "text", "filtered DGHS")
    split = ["dev" if hash_share(text, "dghs-dev") < DEV_SHARE else "train" for text in texts]
    numbered = pl.DataFrame({"text": texts, "split": split}).with_row_index("row")
    return numbered.select(_id(version), "text", "split", target=pl.lit(None, dtype=pl.String))


def _id(version: str) -> pl.Expr:
    """ "dghs-<version>-<row of the source, from 0>" """
    row = pl.col("row").cast(pl.String).str.zfill(5)
    return pl.format("dghs-{}-{}", pl.lit(version), row).alias("text_id")


def _check_counts(table: pl.DataFrame, version: str, *, with_splits: bool) -> None:
    train = table.filter(pl.col("split") == "train").height
    checks: list[tuple[str, int, Any]] = [("rows over all splits", table.height, TOTAL[version])]
    if with_splits and version in TRAIN:
        checks.append(("train rows", train, TRAIN[version]))
    for what, count, (low, high) in checks:
        if not low <= count <= high:
            wanted = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            raise DataError(
                f"DGHS {version}: the filter leaves {count:,} {what} ({train:,} train), expected {wanted}; "
                "the file is incomplete or another release (option check_counts: false reads it all the same)"
            )


DATASET = Dataset(
    name="dghs",
    roles=("toxic",),
    licence="none stated upstream; research use only, do not redistribute",
    citation="Vidgen, Thrush, Waseem, Kiela: Learning from the Worst, ACL 2021 (arXiv 2012.15761)",
    options=DghsOptions,
    load=load,
    hub_id=HUB_ID,
)
