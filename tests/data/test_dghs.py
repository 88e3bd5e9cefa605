"""DGHS: the filter, the doubling, the counts."""

from __future__ import annotations

import pytest

from unidetox_ray.data import dghs
from unidetox_ray.data.base import load
from unidetox_ray.errors import ConfigError, DataError

ANY = {"check_counts": False}


def counts(table):
    return dict(table.group_by("split").len().rows())


def test_there_are_34_targets_and_none_is_a_disability():
    assert len(dghs.TARGETS) == 34
    assert not {"dis", "trav", "none", "notgiven", "notargetrecorded"} & dghs.TARGETS


def test_filter_is_exact_membership_and_keeps_the_split(layouts, tmp_path):
    loaded = load("toxic", dataset="dghs", path=str(layouts.dghs(tmp_path)), options=ANY)
    assert loaded.table["target"].to_list() == ["wom", "gay.man", "mus", "other.religion", "bla", "jew"]
    assert loaded.table["split"].to_list() == ["train", "train", "dev", "test", "train", "train"]
    assert loaded.table["text_id"][2] == "dghs-v0.2.3-00002"
    assert loaded.notes["rows_v0.2.3"] == 13 and loaded.notes["rows_after_filter"] == 6


def test_splits_says_what_is_trained_on(layouts, tmp_path):
    path = str(layouts.dghs(tmp_path))
    every = load("toxic", dataset="dghs", path=path, options={**ANY, "splits": ["train", "dev", "test"]})
    assert counts(every.table) == {"train": 6}
    two = load("toxic", dataset="dghs", path=path, options={**ANY, "splits": ["train", "dev"]})
    assert counts(two.table) == {"train": 5, "test": 1}


def test_both_reads_v022_then_v023_and_keeps_each_text_twice(layouts, tmp_path):
    for name in dghs.FILES.values():
        layouts.dghs(tmp_path, name)
    loaded = load("toxic", dataset="dghs", path=str(tmp_path), options={**ANY, "version": "both"})
    one = load("toxic", dataset="dghs", path=str(tmp_path), options=ANY)
    assert loaded.table["text"].to_list() == one.table["text"].to_list() * 2
    assert [name.split("-")[1] for name in loaded.table["text_id"]] == ["v0.2.2"] * 6 + ["v0.2.3"] * 6
    assert loaded.notes["published_bytes_v0.2.2"] is False
    assert len(loaded.notes["files"]) == 2 and len(one.notes["files"]) == 1


def test_repeated_text_is_removed_from_one_version_and_counted(layouts, tmp_path):
    path = layouts.dghs(tmp_path, "some.csv")
    path.write_text(path.read_text().replace("number 1,", "number 0,"))
    loaded = load("toxic", dataset="dghs", path=str(path), options=ANY)
    assert loaded.table.height == 5 and loaded.notes["duplicates_removed"] == 1


def test_counts_are_asserted_when_the_file_is_named_as_the_whole(layouts, tmp_path):
    with pytest.raises(DataError, match=r"leaves 6 rows over all splits \(4 train\), expected 12,575"):
        load("toxic", dataset="dghs", path=str(layouts.dghs(tmp_path)))
    part = layouts.dghs(tmp_path, "a_part.csv")
    assert load("toxic", dataset="dghs", path=str(part)).table.height == 6
    with pytest.raises(DataError, match="expected 12,575"):
        load("toxic", dataset="dghs", path=str(part), options={"check_counts": True})
    layouts.dghs(tmp_path, dghs.FILES["v0.2.2"])
    with pytest.raises(DataError, match=r"leaves 12 rows over all splits .* expected 25,150 to 25,152"):
        load("toxic", dataset="dghs", path=str(tmp_path), options={"version": "both"})


@pytest.mark.parametrize(
    ("version", "total", "train", "message"),
    [
        ("v0.2.3", 12_575, 10_084, None),
        ("v0.2.3", 12_576, 10_084, "12,576 rows over all splits"),
        ("both", 25_150, 20_165, None),
        ("both", 25_152, 20_168, None),
        ("both", 25_153, 20_168, "25,153 rows over all splits"),
        ("both", 25_150, 20_164, "20,164 train rows"),
        ("both", 25_150, 25_150, "25,150 train rows"),
    ],
)
def test_count_limits_of_the_real_files(version, total, train, message, layouts, tmp_path):
    per_file = {"v0.2.3": total} if version == "v0.2.3" else {"v0.2.2": total - 12_575, "v0.2.3": 12_575}
    left = train
    for name, rows in per_file.items():
        here = min(left, rows)
        left -= here
        lines = [("hate", "wom", "train")] * here + [("hate", "jew", "dev")] * (rows - here)
        layouts.dghs(tmp_path, dghs.FILES[name], lines)
    if message is None:
        loaded = load("toxic", dataset="dghs", path=str(tmp_path), options={"version": version})
        assert counts(loaded.table) == {"train": train, "dev": total - train}
    else:
        with pytest.raises(DataError, match=message):
            load("toxic", dataset="dghs", path=str(tmp_path), options={"version": version})


def test_filtered_file_gets_splits_by_hash_and_says_so(layouts, tmp_path):
    texts = [{"text": f"invented grumble {number}"} for number in range(500)]
    path = layouts.jsonl(tmp_path / "mine.jsonl", texts)
    loaded = load("toxic", dataset="dghs", path=str(path))
    assert 20 < counts(loaded.table)["dev"] < 85  # Binomial(500, 0.1), five standard deviations either way
    assert "by hash" in loaded.notes["split"]
    assert loaded.table["target"].null_count() == 500
    shuffled = load("toxic", dataset="dghs", path=str(layouts.jsonl(tmp_path / "mine.jsonl", texts[::-1])))
    assert dict(shuffled.table.select("text", "split").rows()) == dict(
        loaded.table.select("text", "split").rows()
    )
    doubled = load("toxic", dataset="dghs", path=str(path), options={"version": "both"})
    assert doubled.table.height == 1000 and doubled.table["text"].n_unique() == 500


def test_wrong_files_are_refused(layouts, tmp_path):
    part = layouts.dghs(tmp_path, "a_part.csv")
    with pytest.raises(ConfigError, match="'both' needs a folder"):
        load("toxic", dataset="dghs", path=str(part), options={"version": "both"})
    with pytest.raises(DataError, match=r"no file for DGHS v0.2.3"):
        load("toxic", dataset="dghs", path=str(tmp_path))
    part.write_text(part.read_text().replace("nothate", "fine"))
    with pytest.raises(DataError, match="unknown label 'fine'; accepted: hate, nothate"):
        load("toxic", dataset="dghs", path=str(part))
    with pytest.raises(DataError, match="column 'text' is missing"):
        load("toxic", dataset="dghs", path=str(layouts.jsonl(tmp_path / "a.jsonl", [{"words": "x"}])))


def test_real_schema_sample(shared_data):
    path = str(shared_data / "dghs" / "dghs_v0.2.3_schema_sample.csv")
    loaded = load("toxic", dataset="dghs", path=path)
    assert loaded.notes["rows_v0.2.3"] == 29
    assert loaded.notes["rows_after_filter"] == 13
    # The hateful texts are withheld there: all 13 read the same, so only one is left after de-duplication.
    assert counts(loaded.table) == {"train": 13 - loaded.notes["duplicates_removed"]}


def test_real_filtered_texts(shared_data):
    loaded = load("toxic", dataset="dghs", path="dghs/dghs_to_detox.jsonl", data_root=str(shared_data))
    assert loaded.table.height == loaded.table["text"].n_unique() == 12_575
    assert loaded.sha256 == "9b0d78ab5195f925ee73ba3c2a27feb0a89be0f27fc88ddde2024f837cac9ece"
    assert counts(loaded.table) == {"train": 11_325, "dev": 1_250}
    folder = load(
        "toxic", dataset="dghs", path="dghs", data_root=str(shared_data), options={"version": "both"}
    )
    assert folder.table.height == 25_150
