"""Continuations of prompts from an OpenAI-compatible server (vLLM, llama.cpp, TGI, a hosted model).

A call that fails for good is null with its reason: never an empty text. An empty text that a server sends is one: the model
ended at once. What a server's own content filter withheld is a failure, or a filter would count as a clean model.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from unidetox_ray.errors import ConfigError, DataError, StageError, UnidetoxError
from unidetox_ray.evaluate.asking import Caller, Part, Sampling
from unidetox_ray.evaluate.journal import Journal, opened
from unidetox_ray.evaluate.server import Server, Stopped

#: Columns and dtypes of generations, whoever made them. `text` null = the generation failed, `error` says why.
GENERATED = {
    "source": pl.String,
    "prompt_id": pl.String,
    "prompt": pl.String,
    "text": pl.String,
    "continuation": pl.Int32,
    "domain": pl.String,
    "distribution": pl.String,
    "error": pl.String,
}
#: At least so many calls in a row that the server did not serve, each with all its retries, end the work.
_LOST_IN_A_ROW = 5


class Display(Protocol):
    """Where a person sees what goes on: `display.TerminalDisplay`, or anything like it."""

    def task(self, label: str, unit: str) -> Any: ...

    def say(self, text: str) -> None: ...


def generate(
    prompts: pl.DataFrame,
    url: str,
    model: str | None,
    sampling: Sampling,
    *,
    continuations: int,
    concurrency: int = 8,
    retries: int = 5,
    timeout: float = 60.0,
    display: Display | None = None,
    chat: bool = False,
    journal: Path | None = None,
    source: str | None = None,
    key_variable: str | None = None,
    first_pause: float = 0.5,
) -> pl.DataFrame:
    """`continuations` texts of every prompt: a GENERATED table, prompts in their order, continuations 0 … within each.

    prompts: columns prompt_id, prompt, and domain ("all" where it lacks) and distribution ("id"). model: its name on the
    server; None = the only one that /v1/models lists. chat: /v1/chat/completions, the prompt being one user message.
    concurrency: calls at once. timeout: seconds for one try. journal: a file of finished calls; with it the same call goes on
    where an interrupted one stopped. source: default "<model>@<host>".

    ConfigError: address, key, model or path refused, a redirect, a journal of other settings. DataError: prompts. StageError:
    the server went away for good; what the journal holds is kept.
    """
    if continuations < 1 or concurrency < 1:
        raise ConfigError(
            f"continuations={continuations}, concurrency={concurrency}: both must be at least 1"
        )
    table = _checked(prompts)
    server = Server(url, retries=retries, timeout=timeout, first_pause=first_pause, key_variable=key_variable)
    if server.bare_key and display is not None:
        display.say(
            f"server {server.host}: the key crosses the network unencrypted (http); use https where the server has it"
        )
    model = model or _only_model(server)
    caller = Caller(server, model, sampling, chat)
    settings = {"server": server.base, "model": model, "chat": chat, "sampling": asdict(sampling)}
    with opened(journal, settings) if journal is not None else nullcontext() as kept:
        texts, errors = _collected(table, caller, continuations, concurrency, kept, display)
    total = table.height * continuations
    if display is not None and errors:
        common = "; ".join(f"{count} × {reason}" for reason, count in Counter(errors.values()).most_common(2))
        display.say(f"{len(errors):,} of {total:,} continuations failed and count as failures: {common}")
    keys = [(row, number) for row in range(table.height) for number in range(continuations)]
    rows = pl.Series([row for row, _ in keys], dtype=pl.UInt32)
    return table[rows].select(
        pl.lit(source or f"{model}@{server.host}").alias("source"), "prompt_id", "prompt",
        pl.Series("text", [texts.get(key) for key in keys], dtype=pl.String),
        pl.Series("continuation", [number for _, number in keys], dtype=pl.Int32),
        "domain", "distribution",
        pl.Series("error", [errors.get(key) for key in keys], dtype=pl.String),
    )  # fmt: skip


def _checked(prompts: pl.DataFrame) -> pl.DataFrame:
    """prompt_id, prompt, domain, distribution as text; DataError naming what does not fit."""
    for name in ("prompt_id", "prompt"):
        if name not in prompts.columns:
            raise DataError(f"prompts: column {name!r} is missing; they hold {prompts.columns}")
    if prompts.is_empty():
        raise DataError("prompts: hold no rows")
    defaults = {"domain": "all", "distribution": "id"}
    added = [pl.lit(value).alias(name) for name, value in defaults.items() if name not in prompts.columns]
    columns = ("prompt_id", "prompt", "domain", "distribution")
    table = prompts.with_columns(added).select(pl.col(name).cast(pl.String) for name in columns)
    for name in columns:
        if table[name].null_count():
            raise DataError(
                f"prompts: column {name!r} is empty in row {table[name].is_null().arg_true()[0] + 1}"
            )
    if table["prompt_id"].n_unique() < table.height:
        raise DataError("prompts: column 'prompt_id' names a prompt twice; give each its own")
    return table


def _only_model(server: Server) -> str:
    names = server.models()
    if len(names) != 1:
        known = ", ".join(repr(name) for name in names[:10]) or "none"
        raise ConfigError(
            f"server {server.host}: has {len(names)} models ({known}{' …' * (len(names) > 10)}); name one"
        )
    return names[0]


def _collected(
    table: pl.DataFrame,
    caller: Caller,
    continuations: int,
    concurrency: int,
    kept: Journal | None,
    display: Display | None,
) -> tuple[dict[tuple[int, int], str], dict[tuple[int, int], str]]:
    """Texts and errors by (row, continuation).

    Threads are daemons and only this one writes: an interrupt ends the command at once, whatever a slow server is doing.
    """
    ids, words = table["prompt_id"].to_list(), table["prompt"].to_list()
    texts: dict[tuple[int, int], str] = {}
    errors: dict[tuple[int, int], str] = {}
    orders: queue.SimpleQueue[tuple[int, list[int]]] = queue.SimpleQueue()
    waiting = 0
    for row, (prompt_id, prompt) in enumerate(zip(ids, words, strict=True)):
        known = {} if kept is None else {
            number: text for number in range(continuations) if (text := kept.text(prompt_id, prompt, number)) is not None
        }  # fmt: skip
        texts |= {(row, number): text for number, text in known.items()}
        if len(known) < continuations:
            orders.put((row, [number for number in range(continuations) if number not in known]))
            waiting += continuations - len(known)
    if kept is not None and texts and display is not None:
        display.say(f"{len(texts):,} continuations are in the journal, {waiting:,} are left")
    done: queue.SimpleQueue[Part | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            while True:
                row, wanted = orders.get_nowait()
                for part in caller.parts(row, ids[row], words[row], wanted):
                    done.put(part)
        except (queue.Empty, Stopped):
            return
        except BaseException as error:  # handed to the thread that waits for parts
            done.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, orders.qsize()))]
    total, lost, most = table.height * continuations, 0, max(_LOST_IN_A_ROW, 2 * concurrency)
    try:
        for thread in threads:
            thread.start()
        with (
            display.task(f"{caller.model}@{caller.server.host}", "continuations")
            if display
            else nullcontext() as advance
        ):
            while waiting:
                part = _next(done)
                if isinstance(part, BaseException):
                    raise part
                texts |= {(part.row, number): text for number, text in part.texts.items()}
                errors |= {(part.row, number): error for number, error in part.failed.items()}
                if kept is not None and part.texts:
                    kept.add(ids[part.row], words[part.row], part.texts)
                waiting -= len(part.texts) + len(part.failed)
                lost = lost + 1 if part.lost else 0
                if lost and (lost >= most if waiting else not texts):
                    raise _gone(caller.server, lost, next(iter(part.failed.values())), kept is not None)
                if advance is not None:
                    advance(total - waiting, total)
    finally:
        caller.server.stop.set()
    return texts, errors


def _next(done: queue.SimpleQueue[Part | BaseException]) -> Part | BaseException:
    """The next part. A wait without a limit would not notice a Ctrl-C that the system hands to another thread."""
    while True:
        try:
            return done.get(timeout=0.5)
        except queue.Empty:
            continue


def _gone(server: Server, calls: int, reason: str, kept: bool) -> UnidetoxError:
    again = (
        "the same command goes on from the journal" if kept else "nothing was kept, for no journal was named"
    )
    return StageError(
        f"server {server.host}: {calls} calls in a row failed with {server.retries} retries each ({reason}); "
        f"start it again or raise the timeout; {again}"
    )
