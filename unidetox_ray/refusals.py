"""What an experiment file may not hold, whatever its keys mean: secrets, odd characters, paths that lead out.

where: the file, place: the key, for the message.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from unidetox_ray import secrecy
from unidetox_ray.errors import ConfigError

#: Longer than any path; a description may use it.
_LONGEST_TEXT = 4096


def no_secrets(values: Any, where: str, place: str = "") -> None:
    """ConfigError for a key or a value that looks like a secret."""
    if isinstance(values, dict):
        for key, value in values.items():
            name = f"{place}.{key}" if place else str(key)
            if secrecy.is_secret_key(str(key)) or secrecy.holds_secret(str(key)):
                raise ConfigError(
                    f"{where}: {name} looks like a secret, and this file is copied into the run folder and shown in reports; "
                    f"{secrecy.ADVICE}"
                )
            no_secrets(value, where, name)
    elif isinstance(values, list):
        for index, value in enumerate(values):
            no_secrets(value, where, f"{place}[{index}]")
    elif isinstance(values, str) and secrecy.holds_secret(values):
        raise ConfigError(
            f"{where}: {place} holds what looks like a secret, and this file is copied into the run folder and shown in "
            f"reports; {secrecy.ADVICE}"
        )


def plain_text(values: Any, where: str, place: str = "") -> None:
    """ConfigError for text that no file name, log or JSON file can hold: control characters, half of a surrogate pair."""
    if isinstance(values, dict):
        for key, value in values.items():
            name = f"{place}.{key}" if place else str(key)
            plain_text(str(key), where, f"the key {str(key)[:60]!r}")
            plain_text(value, where, name)
    elif isinstance(values, list):
        for index, value in enumerate(values):
            plain_text(value, where, f"{place}[{index}]")
    elif isinstance(values, str):
        allowed = "\n\t" if place in {"description", "data"} else ""
        odd = next((c for c in values if unicodedata.category(c) in {"Cc", "Cs"} and c not in allowed), None)
        if odd is not None:
            raise ConfigError(f"{where}: {place} holds the character U+{ord(odd):04X}; write plain text")
        if len(values) > _LONGEST_TEXT:
            raise ConfigError(f"{where}: {place} has {len(values)} characters; at most {_LONGEST_TEXT}")


def stays_inside(values: Mapping[str, Any], where: str) -> None:
    """ConfigError for a path with `..` where files are written, or where it would leave data.data_root."""
    tracking, data = values.get("tracking"), values.get("data")
    found: dict[str, Any] = {name: values.get(name) for name in ("storage", "cache")}
    if isinstance(tracking, dict):
        found["tracking.uri"] = tracking.get("uri")
    if isinstance(data, dict):
        for role, sources in data.items():
            for index, source in enumerate(sources if isinstance(sources, list) else [sources]):
                if isinstance(source, dict):
                    place = f"data.{role}[{index}]" if isinstance(sources, list) else f"data.{role}"
                    found[f"{place}.path"] = source.get("path")
    for place, value in found.items():
        if isinstance(value, str) and ".." in re.split(r"[/\\]", value):
            inside = "a path below data.data_root" if place.startswith("data.") else "the whole path"
            raise ConfigError(
                f"{where}: {place} = {value[:200]!r} holds '..'; write {inside}, so that it is the same place for every process"
            )
