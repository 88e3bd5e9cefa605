"""What a person sees of a piece of work, with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unidetox_ray.display import TerminalDisplay


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def seen(request):
    """(display, what has been printed so far)."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=request.param, width=100, color_system=None)
    return TerminalDisplay(console), stream.getvalue


def test_work_ends_with_one_line(seen):
    display, printed = seen
    with display.task("corpus unidetox", "texts") as advance:
        advance(3, 1280)
        advance(1280, 1280)
    (line,) = [line for line in printed().splitlines() if " in " in line]
    assert "corpus unidetox: 1,280 texts in 0." in line


def test_where_nothing_was_left_to_do_nothing_is_said(seen):
    display, printed = seen
    with display.task("corpus samples", "texts"):
        pass
    assert "texts" not in printed()
