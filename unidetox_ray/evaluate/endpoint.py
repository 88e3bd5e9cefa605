"""Continuations of prompts from an OpenAI-compatible server (vLLM, llama.cpp, TGI, a hosted model).

A call that fails for good is null with its reason: never an empty text. An empty text that a server sends is one: the model
ended at once. What a server's own content filter withheld is a failure, or a filter would count as a clean model.
"""

from __future__ import annotations

import hashlib
import math
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from unidetox_ray.errors import ConfigError, DataError, StageError, UnidetoxError
from unidetox_ray.evaluate.journal import Journal, opened
from unidetox_ray.evaluate.server import CallFailed, Server, Stopped, told

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
#: Unknown path, method, model or key: no other call fares better, unless one has fared better before.
_HOPELESS = {401, 404, 405}


class Display(Protocol):
    """Where a person sees what goes on: `display.TerminalDisplay`, or anything like it."""

    def task(self, label: str, unit: str) -> Any: ...

    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Sampling:
    """How continuations are sampled; defaults are the protocol's (UniDetox section 4)."""

    max_new_tokens: int = 20
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    """0 = not sent; vLLM and others take it, the OpenAI API does not."""
    seed: int | None = 42
    """Each call sends a seed of its own that follows from this one; None = none is sent."""

    def __post_init__(self) -> None:
        # "not" so that a NaN is refused as well.
        if not (
            self.max_new_tokens >= 1
            and 0 <= self.temperature < math.inf
            and 0 < self.top_p <= 1
            and self.top_k >= 0
        ):
            raise ConfigError(
                f"{self}: max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1 and top_k >= 0 are accepted"
            )


@dataclass
class _Part:
    """What one call gave: texts by continuation, or the continuations that failed and why."""

    row: int
    texts: dict[int, str]
    failed: dict[int, str]
    lost: bool = False


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
    caller = _Caller(server, model, sampling, chat)
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


class _Caller:
    """Asks for the continuations of one prompt. What it learns of the server (no n, other field names) holds for all threads."""

    def __init__(self, server: Server, model: str, sampling: Sampling, chat: bool) -> None:
        self.server, self.model, self.sampling, self.chat = server, model, sampling, chat
        self.path = "/chat/completions" if chat else "/completions"
        self.several = True
        """Whether a call may ask for more than one continuation."""
        self.length_name = "max_tokens"
        self.answered = False

    def parts(self, row: int, prompt_id: str, prompt: str, wanted: list[int]) -> Iterator[_Part]:
        """One part per call until every wanted continuation is there or has failed."""
        left, alone = wanted, False
        while left:
            count = 1 if alone or not self.several else len(left)
            body = self._body(prompt_id, prompt, left[0], count)
            try:
                texts = self.server.ask("POST", self.path, body, check=lambda a: _texts(a, self.chat))
            except CallFailed as failure:
                if failure.status in _HOPELESS and not self.answered:
                    raise self._hopeless(failure, prompt) from None
                if self._renamed(failure, body):
                    continue
                refused = failure.status in (400, 422)
                if refused and count > 1:
                    alone = True  # it may be n that it refuses; one alone tells
                    continue
                # What is refused for itself, for its length say, is refused the next time too.
                failed = left if refused else left[:count]
                yield _Part(row, {}, dict.fromkeys(failed, told(failure, prompt)), lost=failure.lost)
                left = left[len(failed) :]
                continue
            self.answered = True
            if alone or (count > 1 and len(texts) == 1):
                self.several = False  # it refuses n, or leaves it aside
            yield _split(row, left[: len(texts)], texts)
            left = left[len(texts) :]

    def _body(self, prompt_id: str, prompt: str, first: int, count: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            self.length_name: self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            **({"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}),
        }
        if count > 1:
            body["n"] = count
        if self.sampling.top_k:
            body["top_k"] = self.sampling.top_k
        if self.sampling.seed is not None:
            # One seed for all calls would give a server without n the same text every time.
            mixed = hashlib.sha256(f"{self.sampling.seed}/{prompt_id}/{first}".encode()).digest()
            body["seed"] = int.from_bytes(mixed[:4], "big") >> 1
        return body

    def _renamed(self, failure: CallFailed, body: dict[str, Any]) -> bool:
        """Whether the server wants another name for the length, as newer chat models do."""
        if "max_tokens" not in body or "max_completion_tokens" not in failure.said:
            return False
        self.length_name = "max_completion_tokens"
        return True

    def _hopeless(self, failure: CallFailed, prompt: str) -> ConfigError:
        said = told(failure, prompt)
        if failure.status == 401:
            return ConfigError(
                f"server {self.server.host}: refused the key or its lack ({said}); set UNIDETOX_API_KEY in the environment"
            )
        other = "without the chat option" if self.chat else "with the chat option"
        return ConfigError(
            f"server {self.server.host}: has no {self.server.base}{self.path} or no model {self.model!r} ({said}); "
            f"check the address and the name, or try {other}"
        )


def _texts(answer: dict[str, Any], chat: bool) -> list[str | CallFailed]:
    """The texts of an answer in the order of their index; a CallFailed for one that the server withheld.

    CallFailed is raised where the answer is not what the API promises.
    """
    choices = answer.get("choices")
    if (
        not isinstance(choices, list)
        or not choices
        or not all(isinstance(choice, dict) for choice in choices)
    ):
        raise CallFailed("the answer holds no choices")
    indices = [choice.get("index") for choice in choices]
    if all(isinstance(index, int) for index in indices):
        choices = [
            choice for _, choice in sorted(zip(indices, choices, strict=True), key=lambda pair: pair[0])
        ]
    texts: list[str | CallFailed] = []
    for choice in choices:
        message = choice.get("message") if chat else choice
        text = message.get("content" if chat else "text") if isinstance(message, dict) else None
        if choice.get("finish_reason") == "content_filter":
            texts.append(CallFailed("withheld by the server's content filter"))
        elif chat and text is None and isinstance(message, dict):
            texts.append(CallFailed("the message has no content"))
        elif not isinstance(text, str):
            raise CallFailed("a choice holds no text")
        elif not _is_unicode(text):
            texts.append(CallFailed("the text holds half of a surrogate pair, which is not Unicode"))
        else:
            texts.append(text)
    return texts


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(row: int, numbers: list[int], texts: list[str | CallFailed]) -> _Part:
    """More texts than were asked for are dropped."""
    pairs = list(zip(numbers, texts, strict=False))
    return _Part(
        row,
        {number: text for number, text in pairs if isinstance(text, str)},
        {number: str(text) for number, text in pairs if isinstance(text, CallFailed)},
    )


def _collected(
    table: pl.DataFrame,
    caller: _Caller,
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
    done: queue.SimpleQueue[_Part | BaseException] = queue.SimpleQueue()

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


def _next(done: queue.SimpleQueue[_Part | BaseException]) -> _Part | BaseException:
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
