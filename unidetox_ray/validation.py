"""What pydantic finds wrong, in one line for the user."""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from unidetox_ray import registry
from unidetox_ray.settings import Section


def one_line(error: ValidationError, section: type[BaseModel] | None = None) -> str:
    """The first problem of a validation error as `place = value: what is accepted`, and how many more there are.

    section: the model that was validated, where its name alone does not tell which it is.
    """
    problems = error.errors(include_url=False)
    problem = problems[0]
    place = ".".join(str(part) for part in problem["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        found = section or _models_by_name().get(error.title, Section)
        accepted = _accepted_keys(found, problem["loc"])
        return f"unknown key {place!r}; {registry.suggest(str(problem['loc'][-1]), accepted)}{more}"
    if problem["type"] == "missing":
        return f"{place} is missing; give it a value{more}"
    message = problem["msg"].removeprefix("Value error, ")
    value = json.dumps(problem["input"], default=str)
    shown = (
        "" if isinstance(problem["input"], dict) and problem["type"] == "value_error" else f" = {value[:80]}"
    )
    return f"{place}{shown}: {message}{more}" if place else f"{message}{more}"


def _accepted_keys(section: Any, location: tuple[int | str, ...]) -> list[str]:
    """Keys of the part of `section` that holds `location`, found by walking the models' annotations."""
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        found = section.model_fields.get(part)
        inner = _section_in(found.annotation) if found else None
        section = inner or section
    return list(section.model_fields)


def _models_by_name() -> dict[str, type[BaseModel]]:
    known: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Section]
    while waiting:
        model = waiting.pop()
        known[model.__name__] = model
        waiting.extend(model.__subclasses__())
    return known


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
