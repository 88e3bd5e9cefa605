"""A file of finished calls, one JSON object a line, from which an interrupted generation goes on.

The first line says what the texts were made with; other settings are refused, so that two runs never mix. A line is written
whole or, when the process dies in the middle of it, is the last one, and is dropped. Failed calls are not in it: they are
made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from unidetox_ray.errors import ConfigError

_FORM = "unidetox generations journal 1"


class Journal:
    """Texts of finished calls by (prompt_id, hash of the prompt, continuation)."""

    def __init__(self, stream: IO[str], texts: dict[tuple[str, str, int], str]) -> None:
        self._stream, self.texts = stream, texts

    def text(self, prompt_id: str, prompt: str, continuation: int) -> str | None:
        return self.texts.get((prompt_id, _hash(prompt), continuation))

    def add(self, prompt_id: str, prompt: str, texts: Mapping[int, str]) -> None:
        """One call's texts by continuation; they are on their way to the disk when this returns."""
        line = {
            "prompt_id": prompt_id,
            "prompt": _hash(prompt),
            "texts": {str(key): text for key, text in texts.items()},
        }
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


@contextmanager
def opened(path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal at `path`, made if need be, readable by its owner only, for one process at a time.

    ConfigError: not a journal, made with other settings, in use, or not writable.
    """
    from filelock import FileLock, Timeout

    head = json.dumps({"journal": _FORM, "settings": dict(settings)}, sort_keys=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"journal {path}: another process is writing it; wait for it or name another file"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"journal {path}: cannot be written ({error.strerror}); name a file in a folder you own"
        ) from None
    try:
        texts, end = _read(path, head)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8", newline="") as stream:
            # What a killed process left of a line would spoil the next one.
            stream.truncate(end)
            stream.seek(end)
            if end == 0:
                stream.write(head + "\n")
                stream.flush()
            yield Journal(stream, texts)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _read(path: Path, head: str) -> tuple[dict[tuple[str, str, int], str], int]:
    """The texts, and where the last whole line ends."""
    if not path.exists():
        return {}, 0
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"journal {path}: cannot be read ({error.strerror}); name a file you own") from None
    lines = data.split(b"\n")[:-1]
    end = sum(len(line) + 1 for line in lines)
    texts: dict[tuple[str, str, int], str] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if number == 1:
                form = row["journal"]
                if form != _FORM:
                    raise KeyError
                if json.dumps(row, sort_keys=True) != head:
                    raise ConfigError(
                        f"journal {path}: belongs to another server, model or sampling; name another file, or delete it to begin anew"
                    )
                continue
            for continuation, text in row["texts"].items():
                if not isinstance(text, str):
                    raise TypeError
                texts[row["prompt_id"], row["prompt"], int(continuation)] = text
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"journal {path} line {number}: not a line of a journal of generations; name another file, or delete it to begin anew"
            ) from None
    if not lines and data:
        raise ConfigError(f"journal {path}: not a journal of generations; name another file")
    return texts, end


def _hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
