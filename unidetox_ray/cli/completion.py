"""What the shell offers behind a verb: files, names, stages, settings. Imported with the command, so it stays light.

Names come from the registry's tables, which are strings; settings from pydantic's fields, read on first use. Neither torch,
Ray nor polars is loaded. A shell that splits words at `=` (bash) asks for what follows it, others for the whole word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import typer

from unidetox_ray.registry import KINDS, STAGES

#: Settings whose values are registered names; `a.b` is a key of an experiment.
_NAMED = {
    "families": "families",
    "base_family": "families",
    "search.metric": "metrics",
    "tuning.metric": "metrics",
    "methods": "methods",
    "search.method": "methods",
}
_SIZES = ("tiny", "gpt2", "gpt2-xl", "7b")
_BENCHMARKS = ("decode", "generate", "score", "finetune", "pipeline")


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """A callback that offers those of `names` that begin with what was typed."""
    offered = tuple(names)
    return lambda incomplete: [name for name in offered if name.startswith(incomplete)]


stages = one_of(STAGES)
kinds = one_of(KINDS)
benchmarks = one_of(_BENCHMARKS)
sizes = one_of(_SIZES)


def experiment_files(incomplete: str) -> list[str]:
    """YAML files and folders that begin so; where nothing was typed also those of `experiments/`."""
    found = _paths(incomplete, lambda path: path.suffix in {".yaml", ".yml"})
    return found if incomplete else [*_paths("experiments/", lambda path: path.suffix == ".yaml"), *found]


def run_folders(incomplete: str) -> list[str]:
    """Folders that begin so; the runs of `outputs/` where nothing was typed."""
    if incomplete:
        return _paths(incomplete, lambda path: False)
    return [str(path.parent) for path in sorted(Path("outputs").glob("*/config.yaml"))]


def overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of the experiment (`finetune.lr=`), and behind `=` the values that a key takes by name."""
    given = list((ctx.params or {}).get("overrides") or [])
    before, equals, value = incomplete.partition("=")
    if not equals and given[-1:] == ["="] and len(given) > 1:
        return _values(given[-2], incomplete)
    if equals and before:
        return [f"{before}={one}" for one in _values(before, value)]
    if equals and given:
        return _values(given[-1], value)
    return [f"{key}=" for key in _keys() if key.startswith(incomplete)]


def _values(key: str, typed: str) -> list[str]:
    """Names that `key` takes, the last one of a list `[a,b` completed."""
    kind = _NAMED.get(key)
    accepted = _keys().get(key, ())
    names: Iterable[str] = accepted or (KINDS[kind] if kind else ())
    if kind is None and key in {f"data.{role}" for role in ("toxic", "prompts", "clean", "mmlu", "scorer")}:
        names = KINDS["datasets"]
    cut = max(typed.rfind("["), typed.rfind(",")) + 1
    return [typed[:cut] + name for name in names if name.startswith(typed[cut:])]


def _keys() -> Mapping[str, tuple[str, ...]]:
    """Every setting of an experiment as a dotted key, with the words that it accepts where those are few."""
    from pydantic import BaseModel

    from unidetox_ray.config import Experiment

    found: dict[str, tuple[str, ...]] = {}

    def walk(model: type[BaseModel], prefix: str, depth: int) -> None:
        for name, field in model.model_fields.items():
            inner = [one for one in _parts(field.annotation) if isinstance(one, type)]
            sections = [one for one in inner if issubclass(one, BaseModel)]
            if sections and depth < 3:
                for section in sections:
                    walk(section, f"{prefix}{name}.", depth + 1)
            words = [word for word in _parts(field.annotation) if isinstance(word, str)]
            found.setdefault(f"{prefix}{name}", tuple(words))

    walk(Experiment, "", 0)
    return found


def _parts(annotation: Any) -> list[Any]:
    """The types and literal words that an annotation is made of; containers are not opened."""
    origin = getattr(annotation, "__origin__", None)
    if origin in (list, tuple, dict, set):
        return []
    inner = get_args(annotation)
    return [part for one in inner for part in _parts(one)] if inner else [annotation]


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    """Folders (ending in /) and wanted files whose path begins so; hidden ones only where a dot was typed."""
    parent, _, start = incomplete.rpartition("/")
    folder = Path(parent or ("/" if incomplete.startswith("/") else "."))
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    lead = f"{parent}/" if "/" in incomplete else ""
    offered = []
    for path in entries:
        if not path.name.startswith(start) or (path.name.startswith(".") and not start.startswith(".")):
            continue
        if path.is_dir():
            offered.append(f"{lead}{path.name}/")
        elif wanted(path):
            offered.append(f"{lead}{path.name}")
    return offered
