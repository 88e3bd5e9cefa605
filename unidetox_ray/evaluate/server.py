"""One OpenAI-compatible server: its address, its key, and calls that are tried again until they are answered or given up.

The key comes from the environment and goes to the given host alone: no redirect is followed, and no netrc file is read. What
counts as an answer is a whole JSON object with status 200; everything else is a `CallFailed` with its reason in words, or,
where no further call can fare better (unknown path or model, key refused, redirect), a ConfigError.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3

from unidetox_ray import secrecy
from unidetox_ray.errors import ConfigError, StageError
from unidetox_ray.evaluate.answers import CallFailed, refused, root_of

#: Variable with the key of whatever server is named; the other one is sent to its own host only.
KEY_VARIABLE = "UNIDETOX_API_KEY"
_KEYS_OF_HOSTS = {"api.openai.com": "OPENAI_API_KEY"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}

#: Larger answers are cut off: n texts of some tokens are far below it.
_LARGEST_ANSWER = 64 << 20
#: Longest pause before another try, in seconds, whatever the server asks for.
_LONGEST_PAUSE = 120.0


class Stopped(Exception):
    """The work was called off while a call waited for its next try."""


def base_of(url: str) -> str:
    """The address that `/completions` is appended to: http://host:8000 and http://host:8000/v1/completions give …/v1.

    ConfigError for what is no http(s) address, or has a user, password, query or fragment in it.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(
            f"server {url!r}: not an address ({error}); give one such as http://localhost:8000/v1"
        ) from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"server {url!r}: not an http(s) address; give one such as http://localhost:8000/v1"
        )
    if "@" in parts.netloc:
        raise ConfigError(
            f"server {host}: the address holds a user or password; set {KEY_VARIABLE} in the environment instead"
        )
    if parts.query or parts.fragment:
        raise ConfigError(
            f"server {host}: the address has a query or fragment; give it without, such as http://localhost:8000/v1"
        )
    path = parts.path.rstrip("/")
    for tail in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(tail)
    return urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))


def key_for(base: str, variable: str | None = None) -> str | None:
    """The key for a server, from the environment: the named variable, else UNIDETOX_API_KEY, else the one of that very host.

    None = none set. ConfigError when a named variable is unset, or has a name from which its value cannot be kept out of
    messages.
    """
    if variable is not None:
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ConfigError(
                f"key variable {variable}: is not set in the environment; set it to the server's key"
            )
        if len(key) >= secrecy.SHORTEST and key not in secrecy.known():
            raise ConfigError(
                f"key variable {variable}: name it …_API_KEY or …_TOKEN, so that its value is kept out of messages"
            )
        return _sendable(variable, key)
    host = urlsplit(base).hostname or ""
    for name in (KEY_VARIABLE, _KEYS_OF_HOSTS.get(host, "")):
        if key := os.environ.get(name, "").strip():
            return _sendable(name, key)
    return None


def _sendable(variable: str, key: str) -> str:
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"key variable {variable}: holds blanks or characters that no header can carry; set it to the key alone"
        )
    return key


class _Key(requests.auth.AuthBase):
    """The bearer header, or none. An auth object of any kind also keeps requests from sending what netrc has for the host."""

    def __init__(self, key: str | None) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key is not None:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


class Server:
    """A server that may be called from several threads.

    retries: further tries after the first (>= 0). timeout: seconds for one try, connecting and reading together.
    first_pause: seconds, about, before the second try; doubled for each further one.
    """

    def __init__(
        self,
        url: str,
        *,
        retries: int = 5,
        timeout: float = 60.0,
        first_pause: float = 0.5,
        key_variable: str | None = None,
    ) -> None:
        if retries < 0 or not timeout > 0 or first_pause < 0:
            raise ConfigError(
                f"server {url}: retries={retries}, timeout={timeout}, first_pause={first_pause}; "
                "retries and pause must be at least 0, the timeout above 0 seconds"
            )
        self.base = base_of(url)
        self.retries, self.timeout, self.first_pause = retries, timeout, first_pause
        self._key = key_for(self.base, key_variable)
        parts = urlsplit(self.base)
        self.host = parts.netloc
        #: The key would cross a network in clear.
        self.bare_key = self._key is not None and parts.scheme == "http" and parts.hostname not in _LOOPBACK
        # A proxy of the environment leads away from this machine, where a server on it is not found.
        self._proxies = {"http": "", "https": "", "all": ""} if parts.hostname in _LOOPBACK else None
        self.stop = threading.Event()
        """Set it to call off every waiting call."""
        self.tries_again = 0
        self._own = threading.local()
        self._not_before = 0.0

    def models(self) -> list[str]:
        """Names of /v1/models. ConfigError when the server has no such list, StageError when it cannot be reached."""
        try:
            answer = self.ask("GET", "/models")
            return [str(entry["id"]) for entry in answer["data"]]
        except (KeyError, TypeError):
            raise ConfigError(
                f"server {self.host}: {self.base}/models holds no list of models; name the model"
            ) from None
        except CallFailed as error:
            if error.lost and not error.final:
                raise StageError(
                    f"server {self.host}: cannot be reached ({error}); start it, or check the address"
                ) from None
            raise ConfigError(
                f"server {self.host}: {self.base}/models did not answer ({error}); name the model, or set {KEY_VARIABLE} if it asks for a key"
            ) from None

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        check: Callable[[dict[str, Any]], Any] | None = None,
    ) -> Any:
        """The JSON object of an answered call, or what `check` makes of it; a CallFailed of `check` is tried again too."""
        for attempt in range(self.retries + 1):
            self._hold()
            try:
                answer = self._once(method, path, body)
                return answer if check is None else check(answer)
            except CallFailed as error:
                if error.final or attempt == self.retries:
                    raise
                self.tries_again += 1
                # Full jitter: callers that failed together do not come back together.
                pause = min(self.first_pause * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)
                if error.pause is not None:
                    # What one caller is asked to wait, all wait: they share the server's allowance.
                    self._not_before = max(
                        self._not_before, time.monotonic() + min(error.pause, _LONGEST_PAUSE)
                    )
                if self.stop.wait(pause):
                    raise Stopped from None
        raise AssertionError("a loop of at least one try ended without an answer")

    def _hold(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            if self.stop.wait(left):
                raise Stopped
        if self.stop.is_set():
            raise Stopped

    @property
    def _session(self) -> requests.Session:
        """One per thread: a session is not made for several."""
        session: requests.Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = requests.Session()
            session.auth = _Key(self._key)
        return session

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout
        try:
            with self._session.request(
                method,
                self.base + path,
                json=body,
                stream=True,
                allow_redirects=False,
                proxies=self._proxies,  # type: ignore[arg-type]  # None = no proxy, whatever the environment says
                timeout=self.timeout,
            ) as response:
                if 300 <= response.status_code < 400:
                    raise ConfigError(f"server {self.host}: {self._moved(response)}")
                data = self._body(response, deadline)
                if response.status_code != 200:
                    raise refused(response, data)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise CallFailed(f"no answer within {self.timeout:g} s", lost=True) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            lost = isinstance(error, requests.ConnectionError)
            what = "not reached" if lost else "the answer broke off"
            raise CallFailed(f"{what} ({root_of(error)})", lost=lost) from None
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            raise CallFailed("the answer is not JSON") from None
        if not isinstance(answer, dict):
            raise CallFailed("the answer is no JSON object")
        return answer

    def _body(self, response: requests.Response, deadline: float) -> bytes:
        """The whole body. Read as it arrives: a server that sends a byte now and then would hold a plain read for ever."""
        data = bytearray()
        while chunk := response.raw.read1(1 << 16, decode_content=True):
            data += chunk
            if len(data) > _LARGEST_ANSWER:
                raise CallFailed(f"the answer is larger than {_LARGEST_ANSWER >> 20} MiB", final=True)
            if time.monotonic() > deadline:
                raise CallFailed(f"no whole answer within {self.timeout:g} s", lost=True)
            if self.stop.is_set():
                raise Stopped
        return bytes(data)

    def _moved(self, response: requests.Response) -> str:
        target = urlsplit(response.headers.get("Location", ""))
        where = f"{target.scheme}://{target.hostname}" if target.hostname else "another path"
        return (
            f"answers with a redirect to {where}, which is not followed, for the key belongs to this address alone; "
            "give the address it redirects to if you trust it"
        )
