"""What of a setting goes into a key, and the hash of plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel


def hashable(section: BaseModel, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """A section as JSON values, with the keys that cannot change a result taken out."""
    values = section.model_dump(mode="json", exclude=set(leave_out))
    values = json.loads(json.dumps(values, default=str))
    data = values.get("data")
    if isinstance(data, dict):
        data.pop("data_root", None)
    for part in (values, *(values.get(name) for name in ("toxic", "finetune"))):
        if isinstance(part, dict):
            for how in ("checkpoint_every", "micro_batch"):  # how the steps are taken, not which
                part.pop(how, None)
    return values


def digest(value: Any) -> str:
    """SHA-256 of a plain value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
