"""What `--metadata` of lm_eval says: which prompts, which judge. Everything else is the task's own YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unidetox_ray import registry
from unidetox_ray.errors import ConfigError
from unidetox_ray.evaluate.prompt_sets import prompt_set
from unidetox_ray.evaluate.scorers import Scorer, opened, specs_of

#: Keys that lm_eval itself puts into a task's metadata.
_OF_LM_EVAL = {"version", "pretrained", "tokenizer", "model", "base_url"}


class Settings(BaseModel):
    """Keys of the metadata; an unknown one is refused where it is near one of these."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompts: Annotated[str, Field(min_length=1)]
    """As `unidetox evaluate --prompts`: a file with a column prompt, or a data set (`unidetox ls datasets`)."""
    path: str | None = None
    """A copy of the data set on this machine."""
    split: Literal["test", "validation"] = "test"
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most so many prompts, spread evenly over the domains."""
    scorer: str = "toxic-bert"
    """As `unidetox evaluate --scorer`: a pinned name, a folder, a hub id, words:FILE."""
    label: str | None = None
    label_map: str | None = None
    activation: Literal["auto", "sigmoid", "softmax"] = "auto"
    """As --label, --label-map and --activation of `unidetox evaluate`."""
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
    found = prompt_set(settings.prompts, path=settings.path, split=settings.split, limit=settings.limit)
    return found.table.select("prompt_id", "prompt", "domain", "distribution")


def judge_of(settings: Settings) -> Scorer:
    """The opened judge. ConfigError, ModelError, ArtifactError."""
    labels = [settings.label] if settings.label else []
    maps = [settings.label_map] if settings.label_map else []
    return opened(specs_of([settings.scorer], labels, maps, settings.activation)[0], settings.device)
