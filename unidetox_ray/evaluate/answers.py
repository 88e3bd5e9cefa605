"""What a server's answer means where it is not the one that was asked for: whether to try again, when, and in which words."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests

from unidetox_ray import secrecy
from unidetox_ray.errors import printable

#: Statuses after which the same call can fare better.
_AGAIN = {408, 409, 425, 429}
_SHOWN = 160


class CallFailed(Exception):
    """One call got no usable answer. final: another try of the same call cannot help; lost: the server serves nobody now."""

    def __init__(
        self, reason: str, *, status: int = 0, final: bool = False, lost: bool = False, said: str = ""
    ) -> None:
        super().__init__(reason)
        self.status, self.final, self.lost, self.said = status, final, lost, said
        self.pause: float | None = None
        """What the server asks to wait, in seconds."""


def refused(response: requests.Response, data: bytes) -> CallFailed:
    """The failure that a status other than 200 stands for."""
    status = response.status_code
    words = f"HTTP {status}"
    said = ""
    try:
        error = json.loads(data)
        error = error.get("error", error)
        said = (
            str(error.get("message") or error.get("detail") or "") if isinstance(error, dict) else str(error)
        )
        code = error.get("code") or error.get("type") if isinstance(error, dict) else None
        if isinstance(code, str) and code.isascii() and len(code) <= 60:
            words += f" {code}"
    except (ValueError, AttributeError, RecursionError):
        pass  # an error page in HTML or plain text: the status alone has to do
    again = status >= 500 or status in _AGAIN
    failure = CallFailed(
        printable(words), status=status, final=not again, lost=again or status in (401, 403, 404), said=said
    )
    failure.pause = asked_pause(response.headers.get("Retry-After"))
    return failure


def asked_pause(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date (RFC 9110, 10.2.3); None where it is neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, ((then if then.tzinfo else then.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


def root_of(error: BaseException) -> str:
    """The kind of the innermost cause; its words would hold addresses of objects."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(getattr(error, "strerror", None) or type(error).__name__)


def told(failure: CallFailed, prompt: str) -> str:
    """The reason of a failure with what the server said, unless it repeats the prompt: reasons are shown, prompts are not."""
    said = printable(failure.said)[:_SHOWN]
    width = 16
    # Any run of the prompt's own characters counts, whole prompts shorter than that as they are.
    pieces = {prompt[i : i + width] for i in range(max(1, len(prompt) - width + 1))} - {""}
    repeats = any(piece in failure.said for piece in pieces)
    return secrecy.redacted(f"{failure}: {said}" if said and not repeats else str(failure))
