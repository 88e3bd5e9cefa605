"""What `--metadata` of lm_eval says: which prompts, which judge. Everything else is the task's own YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unidetox_ray import registry
from unidetox_ray.data import files
from unidetox_ray.data.base import Options, Request, load
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.evaluate.pinned import PINNED, pin_of, warning_of
from unidetox_ray.metrics.classifier import ToxicityClassifier

#: Keys that lm_eval itself puts into a task's metadata.
_OF_LM_EVAL = {"version", "pretrained", "tokenizer", "model", "base_url"}


class Settings(BaseModel):
    """Keys of the metadata; an unknown one is refused where it is near one of these."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompts: Annotated[str, Field(min_length=1)]
    """A file with a column prompt (and prompt_id, domain, distribution), or a data set's name: `unidetox ls datasets`."""
    path: str | None = None
    """A copy of the data set on this machine."""
    split: Literal["test", "validation"] = "test"
    scorer: str = "toxic-bert"
    """A pinned name, a folder, or a hub id."""
    label: str | None = None
    """The label that means toxic; default the pinned one, or `toxic`."""
    device: str = "cpu"
    continuations: Annotated[int, Field(ge=1)] | None = None
    """Default: the task's `repeats`."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    bootstrap: Annotated[int, Field(ge=100)] = 10_000

    @classmethod
    def of(cls, metadata: Mapping[str, Any] | None) -> Settings:
        """From a task's metadata, in which lm_eval puts the model's arguments as well. ConfigError in one line."""
        given = dict(metadata or {})
        for key in given:
            if key not in cls.model_fields and key not in _OF_LM_EVAL:
                near = registry.suggest(key, cls.model_fields)
                if "did you mean" in near:
                    raise ConfigError(f"--metadata: unknown key {key!r}; {near}")
        if "prompts" not in given:
            raise ConfigError(
                '--metadata: names no prompts; give for example --metadata \'{"prompts": "prompts.jsonl"}\', a file with a '
                "column prompt or a data set of `unidetox ls datasets`"
            )
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            spot = ".".join(map(str, first["loc"]))
            raise ConfigError(f"--metadata: {spot} = {first['input']!r}: {first['msg']}") from None


def prompts_of(settings: Settings) -> pl.DataFrame:
    """prompt_id, prompt, domain, distribution (all String) of the prompts to continue. ConfigError, DataError."""
    columns = ("prompt_id", "prompt", "domain", "distribution")
    file = Path(settings.prompts).expanduser()
    if not file.is_file():
        if file.suffix in files.SUFFIXES:
            raise DataError(
                f"prompts {settings.prompts}: no such file; give a table with a column prompt, or a data set"
            )
        table = load("prompts", dataset=settings.prompts, path=settings.path).table
        return table.filter(pl.col("split") == settings.split).select(columns)
    table = files.read_table(file, Request(file, Options()))
    files.text_column(table, "prompt", settings.prompts)
    defaults = {
        "prompt_id": pl.int_range(pl.len()).cast(pl.String).str.zfill(6),
        "domain": pl.lit("all"),
        "distribution": pl.lit("id"),
    }
    lacking = {name: value for name, value in defaults.items() if name not in table.columns}
    table = table.with_columns(**lacking).select(pl.col(name).cast(pl.String) for name in columns)
    for name in columns:
        if table[name].null_count():
            raise DataError(
                f"prompts {settings.prompts}: column {name!r} is empty in {table[name].null_count()} rows; fill it in"
            )
    if table["prompt_id"].n_unique() < table.height:
        raise DataError(
            f"prompts {settings.prompts}: column 'prompt_id' names a prompt twice; give each its own"
        )
    kinds = set(table["distribution"]) - {"id", "ood"}
    if kinds:
        raise DataError(f"prompts {settings.prompts}: distribution {min(kinds)!r}; accepted: id, ood")
    return table


def judge_of(settings: Settings) -> tuple[ToxicityClassifier, str | None]:
    """The opened judge, and a warning where its weights have no pinned hash. ConfigError, ModelError, ArtifactError."""
    if settings.scorer not in PINNED:
        judge = ToxicityClassifier(settings.scorer, label=settings.label or "toxic", device=settings.device)
        return judge, None
    pin = pin_of(settings.scorer)
    judge = ToxicityClassifier(
        pin.source,
        revision=pin.revision,
        sha256=pin.sha256,
        label=settings.label or pin.label,
        device=settings.device,
    )
    return judge, warning_of(settings.scorer, judge.sha256)
