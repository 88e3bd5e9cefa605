"""Progress on a terminal: one bar per piece of work with its rate, and one closing line; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

#: Without a terminal (a job log, a file), a running task says where it is this often.
_LINE_EVERY_S = 30.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {task.fields['unit']}/s" if speed else "", style="cyan")


class TerminalDisplay:
    """`stages.context.Display` on standard error, so that results on standard output can be piped."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def task(self, label: str, unit: str) -> Iterator[Any]:
        started = time.perf_counter()
        state = {"done": 0, "total": 0}
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                bar = progress.add_task(label, total=None, unit=unit)

                def advance(done: int, total: int) -> None:
                    state.update(done=done, total=total)
                    progress.update(bar, completed=done, total=total)

                yield advance
        else:
            last = [started]

            def advance_line(done: int, total: int) -> None:
                state.update(done=done, total=total)
                if time.perf_counter() - last[0] > _LINE_EVERY_S:
                    last[0] = time.perf_counter()
                    self.say(f"{label}: {done:,} of {total:,} {unit}")

            yield advance_line
        seconds = time.perf_counter() - started
        if not state["done"] and seconds < 1:
            return  # everything was there already: nothing to tell
        rate = f", {state['done'] / seconds:,.1f} {unit}/s" if seconds > 0.05 else ""
        self.say(f"{label}: {state['done']:,} {unit} in {seconds:.1f} s{rate}")
