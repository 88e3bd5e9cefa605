"""Every command of the documentation: shell syntax, verbs, options and settings exist; those marked `run` are run.

`<!-- run -->` before a block runs it here, offline, in a temporary folder with the experiments; `<!-- run: long -->` is left to
`make test-long`, and blocks of one page run there in their order.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fenced import ROOT, Block, blocks
from typer.main import get_command

from unidetox_ray.cli import app
from unidetox_ray.cli.completion import _keys

SHELL = blocks("bash", "console", "sh", "shell")
COMMAND = get_command(app)
#: Verbs whose `key=value` are fields of a section; "" beside it: also keys of the whole experiment.
SECTIONS = {
    "finetune": ("finetune.", "cluster."),
    "generate": ("evaluate.", "cluster."),
    "detoxify": ("finetune.", ""),
    "evaluate": ("evaluate.", ""),
}
MARKS = {"", "run", "run: long", "cloud"}
named = {"ids": lambda block: block.where}


def ours(words: list[str]) -> list[str] | None:
    """The arguments of our command, whichever way it is called; None for other programs. `env A=b` and `A=b` before it are left out."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words and Path(words[0]).name == "unidetox":
        return words[1:]
    for start in range(len(words) - 2):
        if Path(words[start]).name.startswith("python") and words[start + 1 : start + 3] == [
            "-m",
            "unidetox_ray",
        ]:
            return words[start + 3 :]
    return None


def parse(arguments: list[str]) -> str | None:
    """What the command's own parser says against the arguments; None where it takes them. Nothing is run.

    `a|b|c` in place of an argument, as in a table of verbs, is not a command: blocks do not hold such.
    """
    eager = {"--help", "-h", "--version", "--install-completion", "--show-completion"}
    if any(word in eager for word in arguments):
        arguments = [word for word in arguments if word not in eager]
        if len(arguments) < 2:
            return None if not arguments or arguments[0] in COMMAND.commands else f"no verb {arguments[0]!r}"
    try:
        context = COMMAND.make_context("unidetox", list(arguments), resilient_parsing=False)
        rest = [*context._protected_args, *context.args]
        name, verb, left = COMMAND.resolve_command(context, rest)
        assert verb is not None
        given = verb.make_context(name, list(left), parent=context)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return error.format_message()
    for item in given.params.get("overrides") or []:
        key = item.partition("=")[0]
        candidates = [f"{prefix}{key}" for prefix in SECTIONS.get(name, ("",))]
        if "=" not in item or not any(candidate in _keys() for candidate in [*candidates, key]):
            # keys of free mappings (`data.toxic.options.x`, `models.neox`) have no field of their own
            free = key.startswith(("data.", "models."))
            if "=" not in item or not free:
                return f"no setting {item!r}"
    return None


def test_the_parser_refuses_what_does_not_exist():
    assert parse(["run", "x.yaml", "--until", "corpus", "finetune.lr=1"]) is None
    assert parse(["finetune", "m", "--corpus", "c.csv", "--out", "o", "steps=3"]) is None
    for wrong in (
        ["runn", "x.yaml"], ["run"], ["run", "x.yaml", "--until-stage", "corpus"], ["run", "x.yaml", "finetune.lrr=1"],
        ["report"], ["ls"], ["finetune", "m", "--out", "o"], ["finetune", "m", "--corpus", "c", "--out", "o", "stepz=1"],
        ["nonsense", "--help"],
    ):  # fmt: skip
        assert parse(wrong) is not None, wrong


def test_blocks_are_found_and_read_as_a_shell_reads_them():
    assert len(SHELL) > 25 and {block.page.name for block in SHELL} >= {
        "README.md",
        "howto.md",
        "quickstart.md",
    }
    assert any(block.mark == "run" for block in SHELL) and any(block.mark == "run: long" for block in SHELL)
    text = "A=1 unidetox ls methods > x.txt && python -m unidetox_ray schema # no\n$not"
    assert [ours(words) for words in Block(ROOT, 1, "bash", "", text).commands()] == [
        ["ls", "methods"],
        ["schema"],
        None,
    ]


@pytest.mark.parametrize("block", SHELL, **named)
def test_every_command_exists(block: Block):
    assert block.mark in MARKS, f"{block.where}: unknown mark {block.mark!r}"
    checked = subprocess.run(["bash", "-n"], input=block.script, text=True, capture_output=True)
    assert checked.returncode == 0, f"{block.where}: {checked.stderr}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in block.commands():
        if (arguments := ours(words)) is not None:
            assert (problem := parse(arguments)) is None, (
                f"{block.where}: unidetox {' '.join(arguments)}: {problem}"
            )
        elif words[0] == "make":
            assert set(words[1:]) <= targets, f"{block.where}: make {words[1:]}"


def run_in(folder: Path, script: str, seconds: int) -> str:
    """The script by bash, `unidetox` being this checkout's; its output. The experiments lie where the pages say."""
    if not (folder / "experiments").exists():
        (folder / "experiments").symlink_to(ROOT / "experiments")
        (folder / "bin").mkdir()
        command = folder / "bin" / "unidetox"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unidetox_ray "$@"\n')
        command.chmod(0o700)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # The command ends its Ray processes when it is asked to end; a killed shell would leave them behind.
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=120)
        raise
    assert process.returncode == 0, f"{script}\n{out[-2000:]}\n{err[-3000:]}"
    return out


@pytest.mark.parametrize("block", [block for block in SHELL if block.mark == "run"], **named)
def test_a_block_runs_as_it_stands(block: Block, tmp_path: Path):
    run_in(tmp_path, block.script, 120)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "page", sorted({block.page for block in SHELL if block.mark == "run: long"}), ids=lambda page: page.name
)
def test_the_long_blocks_of_a_page_run_in_their_order(page: Path, tmp_path: Path):
    for block in SHELL:
        if block.page == page and block.mark == "run: long":
            run_in(tmp_path, block.script, 1300)


def test_the_commands_of_experiment_files_and_of_help_texts_exist():
    """Comments of the shipped experiments, and backticked commands in running text of the pages."""
    lines = [
        line
        for file in sorted((ROOT / "experiments").glob("*.yaml"))
        for line in file.read_text().split("\n")
    ]
    shown = [re.sub(r"\s{2,}.*", "", line.lstrip("# ")) for line in lines if re.match(r"#\s+unidetox ", line)]
    assert len(shown) >= 5
    for line in shown:
        assert parse(line.split()[1:]) is None, line
