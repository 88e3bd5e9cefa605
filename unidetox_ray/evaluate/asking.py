"""One prompt's continuations, call by call: what is sent, what an answer holds, what a server turns out to take."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unidetox_ray.errors import ConfigError
from unidetox_ray.evaluate.answers import CallFailed, told
from unidetox_ray.evaluate.server import Server

#: Unknown path, method, model or key: no other call fares better, unless one has fared better before.
_HOPELESS = {401, 404, 405}


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
class Part:
    """What one call gave: texts by continuation, or the continuations that failed and why."""

    row: int
    texts: dict[int, str]
    failed: dict[int, str]
    lost: bool = False


class Caller:
    """Asks for the continuations of one prompt. What it learns of the server (no n, other field names) holds for all threads."""

    def __init__(self, server: Server, model: str, sampling: Sampling, chat: bool) -> None:
        self.server, self.model, self.sampling, self.chat = server, model, sampling, chat
        self.path = "/chat/completions" if chat else "/completions"
        self.several = True
        """Whether a call may ask for more than one continuation."""
        self.length_name = "max_tokens"
        self.answered = False

    def parts(self, row: int, prompt_id: str, prompt: str, wanted: list[int]) -> Iterator[Part]:
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
                yield Part(row, {}, dict.fromkeys(failed, told(failure, prompt)), lost=failure.lost)
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


def _split(row: int, numbers: list[int], texts: list[str | CallFailed]) -> Part:
    """More texts than were asked for are dropped."""
    pairs = list(zip(numbers, texts, strict=False))
    return Part(
        row,
        {number: text for number, text in pairs if isinstance(text, str)},
        {number: str(text) for number, text in pairs if isinstance(text, CallFailed)},
    )
