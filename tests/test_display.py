"""The lines of progress on a console that is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from unidetox_ray.display import TerminalDisplay


def said(*steps: tuple[int, int]) -> str:
    written = io.StringIO()
    with TerminalDisplay(Console(file=written)).task("corpus samples", "texts") as advance:
        for done, total in steps:
            advance(done, total)
    return written.getvalue()


def test_a_task_that_did_something_says_what():
    assert said((3, 8), (8, 8)) == "corpus samples: 8 texts in 0.0 s\n"


def test_a_task_that_found_everything_made_says_nothing():
    assert said() == "" and said((0, 0)) == ""
