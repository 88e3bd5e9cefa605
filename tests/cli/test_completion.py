"""What the shell is offered, asked as a shell asks: the completion protocol's variables, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unidetox_ray import registry

ROOT = Path(__file__).resolve().parents[2]
#: The command as the console script starts it; at its end it says which heavy packages were loaded.
PROGRAM = """
import atexit, sys
sys.argv = ["unidetox"]
heavy = {"torch", "ray", "polars", "mlflow", "transformers", "deepspeed"}
atexit.register(lambda: print(*sorted(heavy & set(sys.modules)), file=sys.stderr))
from unidetox_ray.cli import main
main()
"""


def offered(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """The completions of the last word of `line` ("" where it ends in a blank)."""
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    if shell != "bash":
        asked = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_UNIDETOX_COMPLETE": f"complete_{shell}", **asked}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.strip() == "", f"loaded for a completion, or failed: {done.stderr}"
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("unidetox sco", ["score"]),
        ("unidetox run experiments/ti", ["experiments/tiny.yaml"]),
        ("unidetox run experiments/tiny.yaml --until s", ["search", "score"]),
        ("unidetox ls m", ["methods", "metrics"]),
        ("unidetox bench p", ["pipeline"]),
        # bash hands over `finetune.precision=bf` as three words, other shells as one
        ("unidetox run experiments/tiny.yaml finetune.precision = bf", ["bf16_master", "bf16_pure"]),
        ("unidetox run experiments/tiny.yaml finetune.precision=fp", ["finetune.precision=fp32"]),
        ("unidetox run experiments/tiny.yaml families=[gpt2,ll", ["families=[gpt2,llama"]),
        ("unidetox run experiments/tiny.yaml base_family = o", ["opt"]),
        ("unidetox run experiments/tiny.yaml methods=[base,task", ["methods=[base,task_arithmetic"]),
        ("unidetox run experiments/tiny.yaml data.toxic=dg", ["data.toxic=dghs"]),
        ("unidetox run experiments/tiny.yaml no.such=x", []),
    ],
)  # fmt: skip
def test_the_shell_is_offered_what_fits(line, expected):
    assert offered(line, ROOT) == expected


def test_files_and_runs_of_the_current_folder_come_first(tmp_path):
    for name in (
        "experiments/a.yaml",
        "experiments/notes.txt",
        "outputs/one/config.yaml",
        "mine.yaml",
        ".hidden.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert offered("unidetox run ", tmp_path) == [
        "experiments/a.yaml",
        "experiments/",
        "mine.yaml",
        "outputs/",
    ]
    assert offered("unidetox run nowhere/x", tmp_path) == []
    assert offered("unidetox report ", tmp_path) == ["outputs/one"]
    assert offered("unidetox export outputs/", tmp_path) == ["outputs/one/"]


def test_every_stage_family_and_key_is_offered(tmp_path):
    assert offered("unidetox run x.yaml --until ", tmp_path) == list(registry.STAGES)
    families = [f"families=[{name}" for name in registry.FAMILIES]
    assert offered("unidetox run x.yaml families=[", tmp_path) == families
    keys = offered("unidetox run x.yaml corpus.", tmp_path)
    assert {"corpus.alpha=", "corpus.num_texts=", "corpus.kv_cache="} <= set(keys)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_in_their_own_way(shell, tmp_path):
    assert any("finetune" in word for word in offered("unidetox finet", tmp_path, shell=shell))
