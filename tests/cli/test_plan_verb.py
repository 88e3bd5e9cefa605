"""`unidetox plan` and `report --baseline` as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import call, everything_below

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "experiments" / "paper_cluster.yaml"


def test_json_alone_is_on_standard_output_and_nothing_is_written(tmp_path):
    done = call(tmp_path, "plan", PAPER, "finetune.steps=100", "--gpus", "a100-80:4", "--json", "--simulate")
    assert done.returncode == 0 and done.stderr == ""
    values = json.loads(done.stdout)
    assert values["fleet"] == "a100-80:4" and values["fits"] and len(values["scaling"]["sizes"]) == 11
    assert everything_below(tmp_path) == {}


def test_what_does_not_fit_ends_with_2_a_line_each_and_the_page_is_there(tmp_path):
    done = call(
        tmp_path, "plan", PAPER, "finetune.precision=fp32", "--gpus", "a100-80:1", "--html", "plan.html"
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith("does not fit: finetune:")
        and "makes it fit: finetune." in lines[0]
    )
    assert "Traceback" not in done.stderr and "NO" in done.stdout
    assert (tmp_path / "plan.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan"], "name an experiment file"),
        (["plan", "absent.yaml"], "absent.yaml"),
        (["plan", PAPER, "--gpus", "a100-800:1"], "did you mean"),
        (["plan", PAPER, "--save-rates", "x.json"], "add --measure"),
        (["plan", PAPER, "--rates", "absent.json"], "absent.json"),
        (["plan", PAPER, "models.llama=nobody/nothing", "--gpus", "h200:1"], "its shape is not known"),
        (["report", "absent", "--baseline", "absent.json"], "absent"),
    ],
)
def test_mistakes_are_one_line_and_code_2(tmp_path, arguments, words):
    done = call(tmp_path, *arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_benchmark_refreshes_the_entry_of_this_machine(tmp_path):
    quick = [
        "bench",
        "score",
        "--size",
        "tiny",
        "--texts",
        40,
        "--repeats",
        1,
        "--no-plain",
        "--device",
        "cpu",
    ]
    refused = call(tmp_path, *quick, "--save-rates", "rates.json")
    assert refused.returncode == 2 and "--threads 1" in refused.stderr and everything_below(tmp_path) == {}
    for _ in range(2):
        done = call(tmp_path, *quick, "--threads", 1, "--save-rates", "rates.json", "--json")
        assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "rates.json").read_text())
    (point,) = values["kinds"]["cpu"]["work"]["classify"]["points"]  # the second in the place of the first
    assert (
        point["seconds"] == pytest.approx(json.loads(done.stdout)["seconds"], rel=1e-3)
        and point["texts"] == 40
    )
    planned = call(
        tmp_path,
        "plan",
        ROOT / "experiments" / "tiny.yaml",
        "--gpus",
        "cpu:2",
        "--rates",
        "rates.json",
        "--json",
    )
    assert planned.returncode == 0, planned.stderr
    shipped = call(tmp_path, "plan", ROOT / "experiments" / "tiny.yaml", "--gpus", "cpu:2", "--json")
    score = [
        next(stage["seconds"] for stage in json.loads(each.stdout)["stages"] if stage["stage"] == "score")
        for each in (planned, shipped)
    ]
    assert score[0] != score[1]
