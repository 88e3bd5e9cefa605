"""The prompts that models continue: a registered data set, or a file of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from unidetox_ray import registry
from unidetox_ray.artifacts import file_sha256
from unidetox_ray.data.base import Dataset, load
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.evaluate import reading
from unidetox_ray.evaluate.cells import name_in, prompt_in
from unidetox_ray.evaluate.columns import NAMES
from unidetox_ray.evaluate.store import NO_DOMAIN, distribution_in
from unidetox_ray.schemas import PROMPTS, frame
from unidetox_ray.stages.context import spread

DEFAULT = "toxigen"
#: Names that mean a data set with options.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rtp-challenging": ("rtp", {"subset": "challenging"}),
    "realtoxicityprompts": ("rtp", {}),
}
_SAMPLE = 1000


@dataclass(frozen=True)
class PromptSet:
    """PROMPTS rows, all of split test. `sha256`: of what was read. `explicit`: the prompts have ids of their own."""

    table: pl.DataFrame
    name: str
    sha256: str
    explicit: bool = True


def prompt_set(
    name: str,
    *,
    path: str | None = None,
    options: Sequence[str] = (),
    split: str = "test",
    limit: int | None = None,
) -> PromptSet:
    """The prompts of a data set (`path`: a copy of it here; `options`: KEY=VALUE of it) or of a file. ConfigError, DataError.

    limit: at most so many, spread evenly over the domains.
    """
    data_set, preset = ALIASES.get(name, (name, {}))
    if not is_file(name):
        loaded = load("prompts", dataset=data_set, path=path, options={**preset, **_options(options)})
        table = loaded.table.filter(pl.col("split") == split).with_columns(split=pl.lit("test"))
        if table.is_empty():
            raise ConfigError(
                f"--split {split}: {name} has none; it has {', '.join(loaded.table['split'].unique().sort())}"
            )
        found = PromptSet(table, name, loaded.sha256)
    else:
        if path is not None or options:
            raise ConfigError(
                f"--prompts {name}: --prompts-path and --prompts-option are for a data set, not for a file"
            )
        found = from_file(Path(name).expanduser())
    return PromptSet(spread(found.table, limit, by="domain"), found.name, found.sha256, found.explicit)


def is_file(name: str) -> bool:
    """Whether `--prompts` names a file and no data set; ConfigError for what is neither."""
    if Path(name).is_file():
        return True
    served = [known for known in registry.names("datasets") if "prompts" in _data_set(known).roles]
    if name in served or name in ALIASES:
        return False
    if reading.kind_of(Path(name)) is None:
        raise ConfigError(
            f"--prompts {name}: {registry.suggest(name, [*served, *ALIASES])}, or a file of prompts"
        )
    return True


def _data_set(name: str) -> Dataset:
    found: Dataset = registry.lookup("datasets", name)
    return found


def _options(given: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                f"--prompts-option {text}: write KEY=VALUE, for example expected_test_rows=null"
            )
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--prompts-option {text}: {value!r} is no YAML value") from None
    return found


def from_file(path: Path) -> PromptSet:
    """A .jsonl, .json, .csv, .tsv or .parquet with `prompt` (a text, an object with `text`, or chat messages) and, if there
    are several, `prompt_id`, `domain`, `distribution`.
    """
    if not path.is_file():
        raise DataError(f"--prompts {path}: no such file")
    rows = reading.rows_of(path)
    first = list(islice(rows, _SAMPLE))
    names = list(dict.fromkeys(name for row in first for name in row))
    column = next((name for name in (*NAMES["prompt"], "text") if name in names), None)
    if column is None:
        raise DataError(
            f"--prompts {path}: column 'prompt' is missing; it holds {', '.join(map(repr, names[:30]))}"
        )
    explicit = "prompt_id" in names
    made: list[dict[str, Any]] = []
    for number, row in enumerate(chain(first, rows), start=1):
        prompt = prompt_in(row.get(column))
        if prompt is None:
            raise DataError(f"--prompts {path} row {number}: column {column!r} holds no text")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"--prompts {path} row {number}: is not Unicode text (half of a surrogate pair)"
            ) from None
        given = name_in(row.get("prompt_id"))
        if explicit and given is None:
            raise DataError(
                f"--prompts {path} row {number}: has no prompt_id; give every prompt one, or none"
            )
        made.append(
            {
                "prompt_id": given or f"{number - 1:06d}", "prompt": prompt, "group": "", "split": "test",
                "domain": name_in(row.get("domain")) or NO_DOMAIN,
                "distribution": distribution_in(row.get("distribution")),
            }
        )  # fmt: skip
    table = frame(made, PROMPTS)
    doubled = table.filter(pl.col("prompt_id").is_duplicated())
    if doubled.height:
        raise DataError(
            f"--prompts {path}: prompt_id {doubled['prompt_id'][0]!r} stands in more than one row; ids must be unique"
        )
    return PromptSet(table, path.name, file_sha256(path), explicit)
