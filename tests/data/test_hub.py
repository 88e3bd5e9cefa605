"""The hub path for real, on a local folder in the hub's layout; what a user reads without a network."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest

from unidetox_ray.data import dghs, hub, mmlu, toxigen
from unidetox_ray.data.base import Request, load
from unidetox_ray.errors import DataError

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_dghs_is_fetched_by_file_name(layouts, tmp_path, monkeypatch):
    repo = tmp_path / "repo"
    for name in dghs.FILES.values():
        path = layouts.dghs(repo, name)
        path.write_text(path.read_text().replace("invented grumble number 0, about socks", "NA"))
    monkeypatch.setattr(dghs, "HUB_ID", str(repo))
    options = {"check_counts": False}
    one = load("toxic", dataset="dghs", options=options)
    assert one.table["text"].to_list()[0] == "NA"
    assert one.table.equals(load("toxic", dataset="dghs", path=str(repo), options=options).table)
    both = load("toxic", dataset="dghs", options={**options, "version": "both"}, revision="abc123")
    assert both.table.height == 2 * one.table.height
    assert both.notes["hub"]["revision"] == "abc123" and both.where.endswith("@abc123")
    with pytest.raises(DataError, match="expected 12,575"):
        load("toxic", dataset="dghs")


def test_parquet_sources(layouts, tmp_path, monkeypatch):
    for module, write, role, options in [
        (toxigen, layouts.toxigen, "prompts", {"expected_train_rows": None, "expected_test_rows": None}),
        (mmlu, layouts.mmlu, "mmlu", {"expected": None}),
    ]:
        repo = tmp_path / role
        folder = write(repo / "raw")
        for split, name in module.HUB_FILES.items():
            (repo / name).parent.mkdir(exist_ok=True)
            (source,) = folder.glob(f"*_{split}*.jsonl")
            pl.read_ndjson(source).write_parquet(repo / name)
        monkeypatch.setattr(module, "HUB_ID", str(repo))
        fetched = load(role, dataset=module.DATASET.name, options=options)
        assert fetched.table.equals(
            load(role, dataset=module.DATASET.name, path=str(folder), options=options).table
        )
        assert fetched.notes["files"] == {} and len(fetched.sha256) == 64


def test_file_that_the_repository_lacks(layouts, tmp_path, monkeypatch):
    layouts.dghs(tmp_path / "repo", dghs.FILES["v0.2.3"])
    monkeypatch.setattr(dghs, "HUB_ID", str(tmp_path / "repo"))
    with pytest.raises(DataError, match=r"cannot read '.*v0.2.2.csv' of hub data set"):
        load("toxic", dataset="dghs", options={"version": "both", "check_counts": False})


def test_no_network_is_one_line_that_names_a_local_file_and_keeps_the_token():
    code = (
        "import os; os.environ |= {'HF_HUB_OFFLINE': '1', 'HF_TOKEN': 'hf_never_to_be_seen'}\n"
        "from unidetox_ray.data.base import load\n"
        "from unidetox_ray.errors import DataError\n"
        "for role, name in [('toxic', 'dghs'), ('prompts', 'toxigen'), ('mmlu', 'mmlu')]:\n"
        "    try: load(role, dataset=name)\n"
        "    except DataError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert "dghs_to_detox.jsonl" in lines[0] and "toxigen_annotated_" in lines[1] and "mmlu_all_" in lines[2]
    assert all("give `path`" in line for line in lines)
    assert "hf_never_to_be_seen" not in done.stdout + done.stderr


def test_refused_access_says_what_to_do_without_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    error = PermissionError("401 Client Error for hf_secret: Unauthorized\nlong trace")
    message = hub._explain(error, "some/data", "a.csv", Request(None, None), "a local a.csv")
    assert "set HF_TOKEN" in message and "a local a.csv" in message
    assert "hf_secret" not in message and "\n" not in message
