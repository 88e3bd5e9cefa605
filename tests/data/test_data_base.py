"""`load`: what it resolves, records and refuses, whatever the data set."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import polars as pl
import pytest

from unidetox_ray import schemas
from unidetox_ray.data import base
from unidetox_ray.data.base import load
from unidetox_ray.errors import ConfigError, DataError


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_relative_path_is_below_data_root_and_absolute_path_stays(layouts, tmp_path):
    layouts.text(tmp_path / "books")
    below = load("clean", dataset="text", path="books/story.txt", data_root=str(tmp_path))
    absolute = load("clean", dataset="text", path=str(tmp_path / "books/story.txt"), data_root="/nowhere")
    assert below.table.equals(absolute.table)
    assert below.where == "books/story.txt"
    assert absolute.where == "story.txt"


def test_sha256_is_that_of_the_bytes(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\r\n\r\ntwo")
    assert (
        load("clean", dataset="text", path=str(file)).sha256 == hashlib.sha256(b"one\r\n\r\ntwo").hexdigest()
    )


def test_sha256_of_several_files_changes_with_any_of_them(layouts, tmp_path):
    layouts.text(tmp_path)
    before = load("clean", dataset="text", path=str(tmp_path))
    (tmp_path / "held.txt").write_text("Something else.")
    after = load("clean", dataset="text", path=str(tmp_path))
    assert set(before.notes["files"]) == {"held.txt", "story.txt"}
    assert before.sha256 != after.sha256
    assert before.notes["files"]["story.txt"] == after.notes["files"]["story.txt"]
    (tmp_path / "story.txt").write_text("Another story.")
    last = load("clean", dataset="text", path=str(tmp_path))
    assert len({before.sha256, after.sha256, last.sha256}) == 3


def test_missing_file(tmp_path):
    with pytest.raises(DataError) as error:
        load("clean", dataset="text", path="gone.txt", data_root=str(tmp_path))
    assert "no such file or folder" in one_line(error) and "gone.txt" in str(error.value)


def test_a_data_set_without_a_source_of_its_own_needs_a_path():
    with pytest.raises(ConfigError, match="needs `path`"):
        load("clean", dataset="text")


def test_unknown_names_get_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'dghs'"):
        load("toxic", dataset="dgsh")
    with pytest.raises(ConfigError, match="did you mean 'version'"):
        load("toxic", dataset="dghs", path=str(tmp_path), options={"verison": "both"})
    with pytest.raises(ConfigError, match="did you mean 'prompts'"):
        load("prompt", dataset="toxigen")


def test_wrong_option_value_names_option_value_and_choice(tmp_path):
    with pytest.raises(ConfigError) as error:
        load("toxic", dataset="dghs", path=str(tmp_path), options={"version": "v9"})
    message = one_line(error)
    assert "version" in message and "'v9'" in message and "'both'" in message


def test_doubled_ids_nulls_and_unknown_splits_are_refused():
    good = {"text_id": ["a", "b"], "text": ["x", "y"], "split": ["train", "dev"], "target": [None, "t"]}
    assert base.checked(pl.DataFrame(good), "toxic", "here").height == 2
    for change, message in [
        ({"text_id": ["a", "a"]}, "'a' occurs more than once"),
        ({"text": ["x", None]}, "'text' is null in 1 of 2"),
        ({"split": ["train", "validation"]}, "unknown split 'validation'"),
    ]:
        with pytest.raises(DataError, match=message):
            base.checked(pl.DataFrame(good | change), "toxic", "here")
    with pytest.raises(DataError, match="no rows"):
        base.checked(pl.DataFrame(schema=dict(schemas.TEXTS)), "toxic", "here")


def test_hash_share_is_fixed_even_and_salted():
    shares = [base.hash_share(f"text {number}", "salt") for number in range(4000)]
    assert shares[:2] == [base.hash_share("text 0", "salt"), base.hash_share("text 1", "salt")]
    assert all(0 <= share < 1 for share in shares)
    # Binomial(4000, 0.1): mean 400, standard deviation 19; five of them either way.
    assert 305 < sum(share < 0.1 for share in shares) < 495
    assert base.hash_share("text 0", "other") != shares[0]


def test_table_hash_depends_on_values_and_dtypes():
    table = pl.DataFrame({"a": ["1", "2"]})
    assert base.table_hash(table) == base.table_hash(table.clone())
    assert base.table_hash(table) != base.table_hash(pl.DataFrame({"a": ["2", "1"]}))
    assert base.table_hash(table) != base.table_hash(pl.DataFrame({"a": [1, 2]}))


def test_naming_a_data_set_imports_no_datasets_library():
    code = (
        "import sys; from unidetox_ray import registry\n"
        "for name in ('dghs', 'toxigen', 'mmlu', 'labelled', 'text'): registry.lookup('datasets', name)\n"
        "assert not {'torch', 'datasets', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
