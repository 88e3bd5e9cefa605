"""Metric, parameter and tag names and values as MLflow accepts them.

MLflow takes letters, digits, `_ - . : /` and spaces in names, 250 characters; `tp_id@lexicon` is refused.
Mapping: `@` becomes `.at.` (`tp_id.at.lexicon`), every other character becomes `_`, and empty, `.` and `..`
parts of a path with slashes go.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from unidetox_ray.secrecy import redacted

NAME_LENGTH = 250
PARAMETER_LENGTH = 6000
TAG_LENGTH = 5000
NOT_APPLICABLE = "-"
#: Every run of a submission carries these, so that the page can filter and group by them.
COMMON_TAGS = (
    "study",
    "kind",
    "family",
    "method",
    "seed",
    "stage",
    "fidelity",
    "precision",
    "scorer",
    "corpus_sha256",
    "key",
    "model_id",
)


def mlflow_name(name: str) -> str:
    """`name` in MLflow's alphabet; see the module's text. ValueError when nothing is left of it."""
    spelled = re.sub(r"[^\w\-.:/ ]", "_", name.replace("@", ".at."), flags=re.ASCII)
    spelled = "/".join(part for part in spelled.split("/") if part.strip() not in ("", ".", ".."))
    if not spelled:
        raise ValueError(f"{name!r} leaves no usable MLflow name")
    if len(spelled) > NAME_LENGTH:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        spelled = f"{spelled[: NAME_LENGTH - 9]}.{digest}"
    return spelled


def plain_text(value: Any, limit: int) -> str:
    """A value as text of at most `limit` characters: JSON for anything but strings, cut with a marker, and
    with every secret that this process knows blanked out.
    """
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = redacted(text)
    if len(text) > limit:
        marker = f" … [cut: {len(text)} characters]"
        text = text[: limit - len(marker)] + marker
    return text


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted names; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def parameter_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow stores them: flat, named in its alphabet, at most 6000 characters each."""
    return {mlflow_name(k): plain_text(v, PARAMETER_LENGTH) for k, v in flatten(values).items()}


def tag_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow stores them: bare names get the prefix `unidetox.`; None becomes "-"."""
    return {
        name if name.startswith(("unidetox.", "mlflow.")) else f"unidetox.{mlflow_name(name)}": (
            NOT_APPLICABLE if value is None or value == "" else plain_text(value, TAG_LENGTH)
        )
        for name, value in values.items()
    }


def common_tags(given: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """All of COMMON_TAGS: from `given`, else the submission's (study, fidelity), else "-"; and what else is
    in `given`.
    """
    full = {f"unidetox.{name}": NOT_APPLICABLE for name in COMMON_TAGS}
    for name in ("unidetox.study", "unidetox.fidelity"):
        if name in inherited:
            full[name] = inherited[name]
    return {**full, **given}
