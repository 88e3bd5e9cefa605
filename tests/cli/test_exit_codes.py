"""What the process answers, whatever a verb left with: the code a shell or a scheduler acts on."""

from __future__ import annotations

import signal
import sys

import pytest
import typer

from unidetox_ray import cli
from unidetox_ray.errors import ConfigError, StageError


def leaves(code: int) -> None:
    raise typer.Exit(code)


def fails(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("verb", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: leaves(0), 0, ""),
        (lambda: leaves(3), 3, ""),
        (lambda: fails(StageError("score: no score")), 1, "unidetox: score: no score\n"),
        (lambda: fails(ConfigError("e.yaml: seed")), 2, "unidetox: e.yaml: seed\n"),
        (lambda: signal.raise_signal(signal.SIGINT), 130, "interrupted; the same command goes on from here"),
    ],
    ids=["returns", "leaves with 0", "some cells failed", "stage", "mistake", "Ctrl-C"],
)
def test_the_code_a_verb_leaves_with_reaches_the_shell(verb, code, said, monkeypatch, capsys):
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("verb")(verb)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["unidetox", "verb"])
    # A shell that starts us in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hook = sys.excepthook
    try:
        with pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        sys.excepthook = hook
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert left.value.code == code
    assert said in capsys.readouterr().err
