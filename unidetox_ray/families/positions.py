"""How long a text a model can read, by its config."""

from __future__ import annotations

from typing import Any

#: As the configs call it; the library maps most other names to the first.
_NAMES = ("max_position_embeddings", "max_seq_len", "max_target_positions")


def positions_of(config: Any) -> int | None:
    """How many positions the model's text part knows; None where its config says nothing of it."""
    find = getattr(config, "get_text_config", None)
    text = config if find is None else find(decoder=True)
    return next((number for name in _NAMES if (number := positive(text, name))), None)


def positive(config: Any, name: str) -> int | None:
    """A whole number above 0 of a config; None where it has none, or several by layer."""
    try:
        value = getattr(config, name, None)
    except Exception:  # the library's own kind, for a value that differs from layer to layer
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
