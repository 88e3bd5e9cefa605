"""Data files that are cut off, changed, of another layout or damaged: one line with the file, never a smaller table."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unidetox_ray.artifacts import RunFolder, finished, write_manifest, write_parquet
from unidetox_ray.data import files
from unidetox_ray.data.base import Options, Request, load
from unidetox_ray.errors import ArtifactError, DataError, UnidetoxError
from unidetox_ray.evaluate.single_file import score_file
from unidetox_ray.single import generate_one
from unidetox_ray.stages.context import Silent

TABLE = pl.DataFrame({"text": [f"text {index}" * 3 for index in range(200)], "n": range(200)})


def parquet() -> bytes:
    stream = io.BytesIO()
    TABLE.write_parquet(stream)
    return stream.getvalue()


RAW = {".parquet": parquet(), ".csv": TABLE.write_csv().encode(), ".jsonl": TABLE.write_ndjson().encode()}


def read(raw: bytes, suffix: str, folder) -> pl.DataFrame | None:
    """The table, or None where it was refused in one line that names the file."""
    path = folder / f"file{suffix}"
    path.write_bytes(raw)
    try:
        return files.read_table(path, Request(path, Options()))
    except DataError as error:
        assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 600
        return None


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_file_never_becomes_a_smaller_table(suffix, data, tmp_path):
    raw = RAW[suffix]
    cut = data.draw(st.integers(1, len(raw) - 2))
    found = read(raw[:cut], suffix, tmp_path)
    # A file of lines that ends at a line's end is whole: counts and hashes, where a data set states them, tell.
    assert found is None or raw[:cut].endswith((b"}", b"}\n"))


@pytest.mark.parametrize("suffix", sorted(RAW))
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(suffix, data, tmp_path):
    raw = bytearray(RAW[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found = read(bytes(raw), suffix, tmp_path)
    assert found is None or found.height > 0


@pytest.mark.parametrize(
    "raw",
    [b"", b"PAR1", b"PAR1PAR1", b"\0" * 100, RAW[".csv"]],
    ids=["empty", "mark", "marks", "zeros", "a csv"],
)
def test_what_is_no_parquet(raw, tmp_path):
    assert read(raw, ".parquet", tmp_path) is None


WRONG = {
    "prompts without the column": (
        "generate",
        {"text": ["a"]},
        "column 'prompt' is missing; it holds ['text']",
    ),
    "a null prompt": ("generate", {"prompt": ["a", None]}, "column 'prompt' is empty in 1 rows"),
    "an id twice": ("generate", {"prompt": ["a", "b"], "prompt_id": ["1", "1"]}, "names a prompt twice"),
    "no rows": ("generate", {"prompt": []}, "no rows"),
    "numbers for prompts": ("generate", {"prompt": [1, 2]}, "column 'prompt' holds Int64"),
    "continuations without the column": (
        "score",
        {"prompt_id": ["1"], "prompt": ["a"]},
        "no column with generated text",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_table_of_another_layout(case, tmp_path):
    verb, columns, said = WRONG[case]
    path = tmp_path / "given.parquet"
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(UnidetoxError) as refused:
        if verb == "generate":
            generate_one("./no-model", path, tmp_path / "out.parquet", [], limit=None, display=Silent())
        else:
            score_file(path, "org/no-model", label="toxic", revision=None, out=tmp_path / "out.parquet")
    assert said in str(refused.value) and refused.value.exit_code == 2
    assert [each.name for each in tmp_path.iterdir()] == ["given.parquet"]


def test_a_pipe_or_a_folder_as_data(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv"):
        files.read_table(tmp_path / "folder.csv", Request(tmp_path, Options()))
    with pytest.raises(DataError, match="is no path"):
        load("clean", dataset="text", path="x" * 5000, data_root=str(tmp_path))


def test_a_stored_table_that_was_changed_is_refused_when_it_is_reused(tmp_path):
    folder = RunFolder(tmp_path, "run").stage("score", "k")
    write_parquet(folder / "scores.parquet", TABLE)
    write_manifest(folder, stage="score", key="k", seconds=0, config={}, inputs={})
    assert finished(folder, "k") is not None
    raw = bytearray((folder / "scores.parquet").read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / "scores.parquet").write_bytes(raw)
    with pytest.raises(ArtifactError, match="its hash differs") as refused:
        finished(folder, "k")
    assert str(folder / "scores.parquet") in str(refused.value) and refused.value.exit_code == 2


def test_the_command_says_it_in_one_line(tmp_path, root):
    (tmp_path / "cut.parquet").write_bytes(RAW[".parquet"][:-20])
    done = subprocess.run(
        [sys.executable, "-m", "unidetox_ray", "generate", "./m", "--prompts", "cut.parquet", "--out", "o.parquet"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "cut.parquet is not a readable parquet file" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["cut.parquet"]
