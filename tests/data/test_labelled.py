"""Labelled comments: the mapping to six labels, the splits, what is removed."""

from __future__ import annotations

import polars as pl
import pytest

from unidetox_ray.data.base import load
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.schemas import LABELS


def rows(table, **wanted):
    return table.filter(*(pl.col(name) == value for name, value in wanted.items())).to_dicts()


def labels(row):
    return [row[name] for name in LABELS]


def test_labels_of_every_source(layouts, tmp_path):
    table = load("scorer", dataset="labelled", path=str(layouts.labelled(tmp_path))).table
    for number, expected in [(0, (1.0, 1.0)), (1, (1.0, 0.0)), (2, (0.0, 0.0))]:
        (row,) = rows(table, text=f"a grumpy tweet, number {number}")
        assert labels(row) == [expected[0], None, None, None, None, expected[1]]
    (rude,), (kind,) = rows(table, text="rude sentence 7"), rows(table, text="calm sentence 7")
    assert labels(rude) == [1.0, *[None] * 5] and labels(kind) == [0.0, *[None] * 5]
    (spans,) = rows(table, source="toxic_spans", text="a nasty\r\npost")
    assert labels(spans) == [1.0, *[None] * 5] and spans["split"] == "test"
    assert [labels(row) for row in rows(table, source="jigsaw")] == [
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, None, 0.0, 0.0, 0.0, 0.0],
    ]


def test_what_is_removed_is_counted(layouts, tmp_path):
    loaded = load("scorer", dataset="labelled", path=str(layouts.labelled(tmp_path)))
    assert loaded.notes["jigsaw_unscored_removed"] == 1
    assert loaded.notes["contradicting_labels_removed"] == 2 and not rows(loaded.table, text="rude here")
    assert loaded.notes["duplicates_removed"] == 1 and not rows(loaded.table, text="Said  twice")
    # "the very SAME  remark" is in Davidson and, in another spelling, in the judging Toxic Spans.
    same = [row["source"] for row in loaded.table.to_dicts() if "same" in row["text"].lower()]
    assert same == ["toxic_spans"]
    assert loaded.notes["shared_between_splits_removed"] + loaded.notes["duplicates_removed"] == 2
    assert rows(loaded.table, text="NA")[0]["toxic"] == 1.0


def test_shares_and_paraphrases_stay_together(layouts, tmp_path):
    path = str(layouts.labelled(tmp_path))
    options = {"train": ["paradetox"], "test": [], "dev_share": 0.3, "test_share": 0.3}
    table = load("scorer", dataset="labelled", path=path, options=options).table
    assert set(table["split"]) == {"train", "dev", "test"} and set(table["source"]) == {"paradetox"}
    number = pl.col("text").str.extract(r"(\d+)$")
    together = table.group_by(number.alias("number")).agg(pl.col("split").n_unique(), pl.len())
    assert set(together["split"]) == {1} and set(together["len"]) == {2, 3}
    none = load(
        "scorer", dataset="labelled", path=path, options={**options, "dev_share": 0, "test_share": 0}
    ).table
    assert set(none["split"]) == {"train"}


def test_pretrain_is_a_share_without_test_text(layouts, tmp_path):
    path = str(layouts.labelled(tmp_path))
    scorer = load("scorer", dataset="labelled", path=path).table
    every = load("pretrain", dataset="labelled", path=path).table
    assert not set(every["text"]) & set(scorer.filter(pl.col("split") == "test")["text"])
    assert set(every["text"]) == set(scorer.filter(pl.col("split") != "test")["text"])
    assert set(every["target"]) == {"toxic", "neutral"}
    some = load("pretrain", dataset="labelled", path=path, options={"pretrain_share": 0.5}).table
    assert 0.25 * every.height < some.height < 0.75 * every.height
    assert set(some["text"]) < set(every["text"])


def test_wrong_settings_and_files_are_refused(layouts, tmp_path):
    path = str(layouts.labelled(tmp_path))
    with pytest.raises(ConfigError, match="'davidson' is named twice"):
        load("scorer", dataset="labelled", path=path, options={"test": ["davidson"]})
    with pytest.raises(ConfigError, match="'tweets'"):
        load("scorer", dataset="labelled", path=path, options={"train": ["tweets"]})
    file = tmp_path / "davidson_labeled_data.csv"
    with pytest.raises(DataError, match="needs the folder"):
        load("scorer", dataset="labelled", path=str(file))
    file.write_text(file.read_text().replace("3,0,3,0,0,", "3,0,3,0,7,"))
    with pytest.raises(DataError, match="unknown class '7'"):
        load("scorer", dataset="labelled", path=path)
    file.unlink()
    with pytest.raises(DataError, match="no file for davidson"):
        load("scorer", dataset="labelled", path=path)


def test_real_comments(shared_data):
    loaded = load("scorer", dataset="labelled", path="toxicity_labelled", data_root=str(shared_data))
    # data/README.md and reference/datasets.md 5; Jigsaw: 282 + 51 rows, 25 of them unscored.
    assert loaded.notes["davidson_rows"] == 24_783
    assert loaded.notes["paradetox_rows"] == 11_927 + 19_743
    assert loaded.notes["toxic_spans_rows"] == 7_939 + 2_000
    assert (loaded.notes["jigsaw_rows"], loaded.notes["jigsaw_unscored_removed"]) == (308, 25)
    shares = loaded.table.filter(pl.col("source") == "davidson").group_by("split").len()
    share = {split: count / shares["len"].sum() for split, count in shares.rows()}
    assert share["test"] == pytest.approx(0.1, abs=0.01) and share["dev"] == pytest.approx(0.05, abs=0.01)
    folded = [" ".join(text.casefold().split()) for text in loaded.table["text"]]
    assert len(set(folded)) == len(folded)
