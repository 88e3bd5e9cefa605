"""What a cell of a foreign file holds: texts, a prompt, a name, a whole number; None for what is none of it.

Texts stand as they are, in objects, in lists of either, or as the messages of a conversation (OpenAI, Anthropic, chat
pipelines, the lists of TRL). A conversation is one generation: what its assistant said last. What the user said is no
generation, however it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Keys under which an object holds its text, first match wins. `body`: of an answer in a file of a batch interface.
_INSIDE = (
    "text", "content", "parts", "message", "body", "continuation", "generation", "completion", "response", "output",
    "generated_text", "model_output", "texts", "continuations", "generations", "completions", "responses", "outputs",
    "choices", "candidates", "filtered_resps", "resps",
)  # fmt: skip
_DEPTH = 6
#: What the one who generates is called in messages.
_MODEL = {"assistant", "model", "gpt"}
#: Types of the parts that are what a message says; others are thoughts, images, calls of tools.
_SAID = {"text", "output_text", "input_text"}
_KEPT = {*_SAID, "message"}


def texts_in(value: Any, depth: int = _DEPTH) -> list[str | None]:
    """The texts of a cell: a text, an object with one (`text`, `message.content` …), or a list of either.

    The messages of a conversation are one text, what its assistant said last; so are the parts of one message. What is none
    of it gives None in its place: a text that is missing.
    """
    if isinstance(value, str):
        return [value]
    if depth and isinstance(value, (list, tuple)):
        turns = _turns(value)
        if turns is not None:
            return [_joined(texts_in(value[turns[-1]], depth - 1))] if turns else [None]
        kept = [each for each in value if _type(each) in _KEPT]
        if kept and all(_type(each) in _SAID for each in kept):
            return [_joined(kept)]
        return [text for each in kept or value for text in texts_in(each, depth - 1)]
    if depth and isinstance(value, Mapping):
        if _role(value) is not None and isinstance(value.get("value"), str):
            return [value["value"]]
        name = next((name for name in _INSIDE if value.get(name) is not None), None)
        if name == "parts":
            return [_joined(value[name])]
        return texts_in(value[name], depth - 1) if name is not None else [None]
    return [None]


def prompt_in(value: Any) -> str | None:
    """The prompt of a cell: a text, an object with `text` as in RealToxicityPrompts, or a list of chat messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if isinstance(of_harness := value.get("gen_args_0"), Mapping):  # `arguments` of lm-evaluation-harness
            return prompt_in(of_harness.get("arg_0"))
        if _role(value) is not None and isinstance(value.get("value"), str):
            return str(value["value"])
        inside = next(
            (value[name] for name in ("text", "content", "parts") if value.get(name) is not None), None
        )
        return (
            _joined(inside)
            if isinstance(inside, (list, tuple))
            else inside
            if isinstance(inside, str)
            else None
        )
    if isinstance(value, (list, tuple)) and value:
        parts = [prompt_in(each) for each in value]
        return None if None in parts else "\n".join(part for part in parts if part is not None)
    return None


def asked_in(value: Any) -> str | None:
    """What stands before the text that `texts_in` takes from a conversation; None for what is no conversation."""
    turns = _turns(value) if isinstance(value, (list, tuple)) else None
    return prompt_in(value[: turns[-1]] if turns else value) if turns is not None else None


def _turns(value: Sequence[Any]) -> list[int] | None:
    """Where the model speaks in a conversation; None for what is none. Messages of the model alone are several texts."""
    if not value or _role(value[0]) is None:
        return None
    roles = [_role(each) for each in value]
    if None in roles or all(role in _MODEL for role in roles):
        return None
    return [place for place, role in enumerate(roles) if role in _MODEL]


def _role(value: Any) -> str | None:
    role = value.get("role", value.get("from")) if isinstance(value, Mapping) else None
    return role.lower() if isinstance(role, str) else None


def _type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    return kind if isinstance(kind, str) else None


def _joined(parts: Any) -> str | None:
    """The text of a message that comes in parts; None where no part is text."""
    texts = [part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
             for part in (parts if isinstance(parts, (list, tuple)) else [])]  # fmt: skip
    said = [text for text in texts if isinstance(text, str)]
    return "".join(said) if said else None


def name_in(value: Any) -> str | None:
    """An id or the name of a domain as text; None for what is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (int, float)) else None


def whole_in(value: Any) -> int | None:
    """A whole number that fits 32 bits, also as the text that a csv file makes of it; None for what is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().lstrip("-").isdigit() and len(value) < 11:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and -(2**31) <= value < 2**31 else None


def nested(text: Any) -> Any:
    """A csv cell that holds a JSON list or object, as many programs write them; else the text."""
    if isinstance(text, str) and text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
