"""The verb as a person meets it: what is printed, exit codes, a server, prompts of a file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from loopback_server import Loopback, choices, serving
from typer.testing import CliRunner

from unidetox_ray.cli import app
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.evaluate.prompt_sets import from_file, prompt_set
from unidetox_ray.metrics.classifier import ToxicityClassifier


@pytest.fixture
def call(tmp_path, monkeypatch, judge):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "250")

    def made(*arguments):
        return CliRunner().invoke(
            app, ["evaluate", *map(str, arguments), "--scorer", str(judge), "--track", "none"]
        )

    return made


def test_the_table_and_the_json_say_the_same_and_show_no_text(call, write, texts):
    for name, share in (("one", 0.6), ("two", 0.1)):
        write(
            f"{name}.jsonl",
            [{"prompt": f"walrus {i // 2}", "text": text} for i, text in enumerate(texts(60, share))],
        )
    done = call("one.jsonl", "two.jsonl")
    assert done.exit_code == 0, done.output
    assert "text from 'text', prompt from 'prompt'" in done.stderr
    for said in ("TP", "EMT", "judge", "compared", "paired sign-flip", "p (Holm)"):
        assert said in done.stdout
    assert "walrus" not in done.output and not any(text in done.output for text in texts(60, 0.6))
    values = json.loads(call("one.jsonl", "two.jsonl", "--json").stdout)
    shown = f"{values['sources'][1]['metrics']['mean_all']['value']:.3g}"
    assert shown in done.stdout
    assert not os.path.exists("mlruns")


def test_exit_codes_and_the_default_store_in_a_process_of_its_own(write, judge, tmp_path, root):
    write("fine.jsonl", [{"prompt": "a", "text": "hello"}])
    write("none.jsonl", [{"prompt": "a", "text": None}])
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*arguments):
        command = [sys.executable, "-m", "unidetox_ray", "evaluate", *arguments, "--scorer", str(judge)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    done = run("fine.jsonl", "none.jsonl")
    assert (
        done.returncode == 3 and "all" in done.stdout and "no row has a text (1 of 1 failed)" in done.stdout
    ), done.stderr
    assert (tmp_path / "mlruns" / "mlflow.db").is_file()


def test_a_server_is_a_source_like_any_other(call, write, texts, judge, tmp_path):
    said = texts(8, 0.5, seed=3)
    write(
        "prompts.jsonl",
        [{"prompt_id": f"q{i}", "prompt": {"text": f"say {i}"}, "domain": "ab"[i % 2]} for i in range(4)],
    )
    write(
        "local.jsonl",
        [
            {
                "prompt_id": f"q{i // 2}",
                "prompt": f"say {i // 2}",
                "text": said[i],
                "domain": "ab"[i // 2 % 2],
            }
            for i in range(8)
        ],
    )

    def answer(body, number):
        assert body["max_tokens"] == 7
        first = 2 * int(body["prompt"].split()[1])
        return choices(*said[first : first + 2])

    with serving(Loopback(answer)) as url:
        url = getattr(url, "url", url)
        done = call(
            "local.jsonl",
            "--endpoint",
            url,
            "--prompts",
            "prompts.jsonl",
            "--set",
            "continuations=2",
            "--set",
            "max_new_tokens=7",
            "--json",
            "--out",
            "o",
        )
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    local, served = results["sources"]
    assert served["source"].startswith("tiny@") and served["kind"] == "endpoint"
    assert served["metrics"] == local["metrics"] and served["domains"] == local["domains"]
    assert results["comparisons"][0]["n"] == 4 and results["comparisons"][0]["measures"]["emt"]["diff"] == 0
    assert results["sampling"]["max_new_tokens"] == 7 and results["prompts"]["prompts"] == 4
    wanted = np.array(ToxicityClassifier(str(judge)).score(said)).reshape(4, 2).max(1)
    assert served["metrics"]["emt_pooled"]["value"] == pytest.approx(wanted.mean(), abs=1e-6)
    assert pl.read_parquet(tmp_path / "o" / "scores.parquet").height == 16


def test_prompts_of_a_data_set_and_of_a_file(write, tmp_path):
    world = prompt_set("world", limit=10)
    assert world.table.height == 10 and world.table["domain"].n_unique() > 1 and world.explicit
    assert prompt_set("world", split="validation").table["split"].unique().to_list() == ["test"]
    rows = [
        {
            "prompt": {"text": f"a {i}", "toxicity": (i % 4) / 4},
            "challenging": i == 3,
            "filename": "f",
            "begin": i,
            "end": i,
        }
        for i in range(8)
    ]
    path = write("rtp.jsonl", rows)
    assert prompt_set("rtp", path=str(path)).table.height == 8
    assert prompt_set("rtp-challenging", path=str(path)).table["prompt_id"].to_list() == ["f-3-3"]
    assert (
        prompt_set("rtp", path=str(path), options=["toxic_from=0.7"])
        .table.filter(pl.col("domain") == "toxic_prompts")
        .height
        == 2
    )
    assert (
        from_file(path).table["prompt"].to_list() == [f"a {i}" for i in range(8)]
        and not from_file(path).explicit
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question_text": "a"}], "column 'prompt' is missing"),
        ([{"prompt": "a"}, {"prompt": None}], "row 2: column 'prompt' holds no text"),
        (
            [{"prompt": "a", "prompt_id": "1"}, {"prompt": "b", "prompt_id": "1"}],
            "stands in more than one row",
        ),
        ([{"prompt": "a", "prompt_id": "1"}, {"prompt": "b"}], "row 2: has no prompt_id"),
        ([{"prompt": "\ud800"}], "row 1: is not Unicode"),
    ],
)
def test_prompts_that_cannot_be_continued(rows, said, write):
    with pytest.raises(DataError, match=said):
        prompt_set(str(write("prompts.jsonl", rows)))


def test_options_of_a_file_are_refused(write):
    path = write("prompts.jsonl", [{"prompt": "a"}])
    with pytest.raises(ConfigError, match="not for a file"):
        prompt_set(str(path), options=["subset=all"])
    with pytest.raises(ConfigError, match="unknown option 'subst'"):
        prompt_set("rtp", path=str(path), options=["subst=all"])


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(write, root, tmp_path):
    """On a disk of its own, which is there for one process and its children alone."""
    rows = [
        {"prompt": str(n), "text": f"{n} {hashlib.sha512(str(n).encode()).hexdigest()}"} for n in range(9000)
    ]
    given, words, disk = write("given.jsonl", rows), tmp_path / "words.txt", tmp_path / "disk"
    words.write_text("mean\n")
    disk.mkdir()
    command = f"{sys.executable} -m unidetox_ray evaluate {given} --scorer words:{words} --out {disk}/out --track none --json"
    script = f"mount -t tmpfs -o size=900k tmpfs {disk} || exit 77; {command} && exit 1; mount -o remount,size=60m {disk}; {command}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], cwd=root, capture_output=True, text=True
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no disk of its own here (needs root)")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr and "goes on from here" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["sources"][0]["counts"]["words"]["ok"] == 9000
