"""Every benchmark at its smallest: a record with sound numbers, JSON alone on standard output, one-line errors."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from unidetox_ray.bench.options import Options
from unidetox_ray.bench.result import BenchResult, table
from unidetox_ray.bench.verb import bench
from unidetox_ray.errors import ConfigError, StageError

KEYS = [
    "name", "device", "dtype", "batch", "seconds", "warmup_seconds", "tokens_per_second", "ratio_to_plain",
    "share_of_limit", "peak_gib",
]  # fmt: skip
SMALLEST = {
    "decode": Options(size="tiny", device="cpu", batch=4, tokens=16, repeats=1),
    "generate": Options(size="tiny", device="cpu", texts=8, tokens=4, repeats=1),
    "score": Options(size="tiny", device="cpu", texts=12, repeats=1),
    "score perplexity": Options(size="tiny", device="cpu", texts=30, repeats=1, kind="perplexity"),
    "score mmlu": Options(size="tiny", device="cpu", texts=6, repeats=1, kind="mmlu"),
    "finetune": Options(size="tiny", device="cpu", texts=8, batch=4, tokens=16, repeats=1),
}


def sound(record: dict, *, limit: bool = True) -> None:
    assert list(record)[: len(KEYS)] == KEYS
    for key in (
        "seconds",
        "tokens_per_second",
        "ratio_to_plain",
        "peak_gib",
        *(["share_of_limit"] if limit else []),
    ):
        assert isinstance(record[key], float) and math.isfinite(record[key]) and record[key] > 0, key
    assert record["warmup_seconds"] >= 0
    assert record["dtype"] == "fp32" and record["device"] == "cpu"
    if limit:
        assert record["share_of_limit"] <= 1.5


def decoded(record: dict) -> None:
    assert record["batch"] == 4 and record["new_tokens"] == 4 * 16
    assert record["tokens_per_second"] == pytest.approx(64 / record["seconds"], rel=2e-3)


def generated(record: dict) -> None:
    assert record["new_tokens"] == 8 * 25 * 4 and record["batch"] == 200


def judged(record: dict) -> None:
    assert 0 <= record["largest_difference"] < 1e-3  # nats, or probabilities, or right and wrong


def finetuned(record: dict) -> None:
    assert record["steps"] == 2
    assert record["tokens_per_second"] == pytest.approx(2 * 4 * 16 / record["seconds"], rel=2e-3)
    # The share of the limit is the model FLOPs utilisation where arithmetic is the longer bound, else more.
    assert 0 < record["mfu"] <= record["share_of_limit"]


CHECKS = {
    "decode": decoded, "generate": generated, "score": judged, "score perplexity": judged, "score mmlu": judged,
    "finetune": finetuned,
}  # fmt: skip


@pytest.mark.parametrize("what", SMALLEST)
def test_every_benchmark_gives_a_sound_record(what):
    threads = torch.get_num_threads()
    result = bench(what.split()[0], SMALLEST[what])
    record = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    sound(record)
    assert record["name"] == what.split()[0] and record["threads"] == threads == torch.get_num_threads()
    assert len(record["runs"]) == len(record["plain_runs"]) == 1
    assert record["ratio_to_plain"] == pytest.approx(record["plain_runs"][0] / record["runs"][0], rel=2e-3)
    assert 0.01 < record["peak_gib"] < 64
    CHECKS[what](record)
    lines = table([result, result]).splitlines()
    assert lines[0].split() == KEYS and lines[1] == lines[2]


def test_without_the_plain_loop_there_is_no_ratio():
    record = bench(
        "decode", Options(size="tiny", device="cpu", batch=2, tokens=4, repeats=2, plain=False)
    ).as_dict()
    assert record["ratio_to_plain"] is None and record["plain_runs"] == [] and len(record["runs"]) == 2


def test_a_side_that_used_up_the_patience_is_not_run_again():
    record = bench(
        "decode", Options(size="tiny", device="cpu", batch=2, tokens=4, repeats=5, patience=0.0)
    ).as_dict()
    assert len(record["runs"]) == len(record["plain_runs"]) == 1


def test_threads_are_as_asked_and_put_back():
    before = torch.get_num_threads()
    record = bench(
        "decode", Options(size="tiny", device="cpu", batch=2, tokens=4, repeats=1, threads=2)
    ).as_dict()
    assert record["threads"] == 2 and torch.get_num_threads() == before


MISTAKES = {
    "name": ("decod", Options(), "did you mean 'decode'"),
    "size": ("decode", Options(size="gpt3"), "--size 'gpt3'"),
    "dtype": ("decode", Options(dtype="fp16"), "--dtype 'fp16'"),
    "kind": ("score", Options(kind="taste"), "--kind 'taste'"),
    "kind elsewhere": ("decode", Options(kind="mmlu"), "belongs to `bench score`"),
    "batch": ("decode", Options(batch=0), "--batch 0"),
    "patience": ("decode", Options(patience=float("nan")), "--patience nan"),
    "device": ("decode", Options(device="tpu"), "--device 'tpu'"),
    "device number": ("decode", Options(device="cpu:1"), "--device 'cpu:1'"),
    "memory": ("finetune", Options(size="7b", device="cpu"), "--size 7b needs"),
    "actors elsewhere": ("score", Options(actors=2), "belong to `bench pipeline`"),
    "pipeline's size": ("pipeline", Options(size="gpt2"), "--size gpt2"),
    "pipeline's device": ("pipeline", Options(device="cpu"), "--device"),
    "pipeline's file": ("pipeline", Options(experiment="nowhere.yaml"), "nowhere.yaml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, monkeypatch):
    name, options, words = MISTAKES[mistake]
    monkeypatch.setattr(os, "sysconf", lambda key: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 22}[key])
    with pytest.raises(ConfigError) as caught:
        bench(name, options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(ConfigError, match="no GPU that torch can use"):
        bench("decode", Options(device="cuda"))


def test_different_work_is_no_measurement():
    from unidetox_ray.bench.pipeline import _same
    from unidetox_ray.bench.plain_pipeline import Outcome

    same = Outcome({"unidetox": ["a", "b"]}, {"steps": 2, "lr": 1e-3}, {"cell": 0.5}, 10)
    _same(same, Outcome({"unidetox": ["a", "b"]}, {"steps": 2, "lr": 1e-3}, {"cell": 0.5}, 10))
    for other, words in (
        (Outcome({"unidetox": ["a", "c"]}, same.chosen, same.tp, 10), "1 of 2 texts of corpus unidetox"),
        (Outcome(same.corpora, {"steps": 4, "lr": 1e-3}, same.tp, 10), "chosen"),
        (Outcome(same.corpora, same.chosen, {"cell": 0.25}, 10), "tp is"),
        (Outcome(same.corpora, same.chosen, same.tp, 9), "judgements"),
    ):
        with pytest.raises(StageError, match=words):
            _same(same, other)


def call(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "unidetox_ray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_json_alone_on_standard_output():
    small = ("--size", "tiny", "--device", "cpu", "--tokens", 4, "--repeats", 1)
    done = call("bench", "decode", "--json", *small)
    assert done.returncode == 0, done.stderr
    sound(json.loads(done.stdout))
    done = call("bench", "decode", "--device", "moon")
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_a_bare_machine_needs_no_ray_and_none_of_the_command_lines_packages():
    code = (
        "import sys\n"
        "absent = 'ray deepspeed mlflow typer rich pydantic datasets peft accelerate matplotlib'.split()\n"
        "class Without:\n"
        "    def __init__(self, finder): self.finder = finder\n"
        "    def find_spec(self, name, *rest):\n"
        "        return None if name.split('.')[0] in absent else self.finder.find_spec(name, *rest)\n"
        "    def __getattr__(self, name): return getattr(self.finder, name)\n"
        "sys.meta_path[:] = map(Without, sys.meta_path)\n"
        "from unidetox_ray.bench.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not set(absent) & set(sys.modules)\n"
        "sys.exit(code)"
    )
    for name in ("decode", "score"):
        done = subprocess.run(
            [sys.executable, "-c", code, name, "--json", "--size", "tiny", "--device", "cpu", "--texts", "4", "--repeats", "1"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        sound(json.loads(done.stdout))


def test_a_record_keeps_what_it_is_given():
    result = BenchResult(
        "x", "cpu", "fp32", None, 1.23456, 0.0, 10.0, None, None, 0.5, {"runs": [1.23456, 2.0]}
    )
    assert result.as_dict()["seconds"] == 1.235 and result.as_dict()["runs"] == [1.235, 2.0]
    assert "-" in table([result]).splitlines()[1].split()
