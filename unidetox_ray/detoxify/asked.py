"""What a person asked of `detoxify`, and the experiment that the stages read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unidetox_ray import registry
from unidetox_ray.config import Experiment, resolve
from unidetox_ray.errors import ConfigError
from unidetox_ray.pinned import PINNED, pin_of
from unidetox_ray.registry import suggest

Adapter = Literal["none", "lora", "bottleneck"]
ADAPTERS = ("none", "lora", "bottleneck")
PUBLISHED, FRESH = "published", "fresh"
#: Stands for any model where an experiment wants the name of a family.
STAND_IN = "gpt2"
_SECTIONS = ("finetune", "evaluate", "toxic", "corpus", "cluster", "data")


@dataclass(frozen=True)
class Asked:
    """The arguments of the verb. Sources that are None have not been named."""

    model: str
    corpus: str
    out: Path
    overrides: tuple[str, ...] = ()
    revision: str | None = None
    adapter: str = "none"
    keep_adapter: bool = False
    seed: int = 1234
    evaluate: bool = True
    prompts: str | None = None
    scorer: str | None = None
    scorer_label: str | None = None
    scorer_revision: str | None = None
    clean: str | None = None
    distil_from: str | None = None
    toxic: str | None = None
    data_root: Path | None = None
    limit: int | None = None
    keep_work: bool = False

    def check(self) -> None:
        """ConfigError for arguments that do not go together, and for a folder that must not be written."""
        if self.adapter not in ADAPTERS:
            raise ConfigError(f"--adapter {self.adapter!r}: {suggest(self.adapter, ADAPTERS)}")
        if self.keep_adapter and self.adapter != "lora":
            raise ConfigError(f"--keep-adapter belongs to --adapter lora, this is --adapter {self.adapter}")
        if self.out.is_dir() and any(self.out.iterdir()):
            what = "already holds a model" if (self.out / "config.json").exists() else "is not empty"
            raise ConfigError(f"--out {self.out}: {what}; name a new folder")
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {self.out}: is a file; name a new folder")
        if self.corpus != FRESH and (self.distil_from or self.toxic):
            option = "--distil-from" if self.distil_from else "--toxic"
            raise ConfigError(f"{option} belongs to --corpus fresh, this is --corpus {self.corpus}")
        if self.data_root is not None and not self.data_root.expanduser().is_dir():
            raise ConfigError(f"--data-root {self.data_root}: no such folder")

    @property
    def base_name(self) -> str:
        """The model as an adapter names it: its hub id, or its folder from the root."""
        place = Path(self.model).expanduser()
        return _absolute(place) if place.is_dir() else self.model

    @property
    def given(self) -> dict[str, set[str]]:
        """Names of the fields that the overrides set, by section."""
        found: dict[str, set[str]] = {name: set() for name in _SECTIONS}
        for override in self._prefixed():
            section, _, rest = override.partition(".")
            found.setdefault(section, set()).add(rest.partition("=")[0].partition(".")[0])
        return found

    def _prefixed(self) -> list[str]:
        return [
            text if text.partition("=")[0].partition(".")[0] in _SECTIONS else f"finetune.{text}"
            for text in self.overrides
        ]

    def experiment(self, chosen: Mapping[str, Any] | None = None) -> Experiment:
        """Everything the stages read. chosen: values that were found for what was not given, by section."""
        values: dict[str, Any] = {
            "name": "detoxify", "base_family": STAND_IN, "families": [STAND_IN], "methods": ["base"],
            "tracking": {"uri": "none"}, "seed": self.seed,
            "finetune": {"adapter": self.adapter},
            "evaluate": {"runs": 1, "ppl_model": None, "scorers": [self._scorer()]},
            "data": {"mmlu": None, "prompts": self._source(self.prompts or "toxigen", "prompts"),
                     "toxic": self._source(self.toxic or "dghs", "toxic")},
        }  # fmt: skip
        if self.clean is not None:
            values["data"]["clean"] = self._source(self.clean, "clean")
        for section, fields in (chosen or {}).items():
            values.setdefault(section, {}).update(fields)
        experiment = resolve(values, self._prefixed(), where="command line", limit=self.limit)
        if experiment.finetune.adapter != self.adapter:
            raise ConfigError(f"finetune.adapter = {experiment.finetune.adapter!r}: name it with --adapter")
        return experiment

    def _source(self, named: str, role: str) -> dict[str, Any]:
        """A registered data set, found below the data root where it lies there, or a file or folder of text."""
        if named in registry.DATASETS and not Path(named).is_file():
            below = None if self.data_root is None else self.data_root.expanduser() / named
            return {
                "dataset": named,
                **({"path": _absolute(below)} if below is not None and below.exists() else {}),
            }
        return {"dataset": "text", "path": _absolute(Path(named)), "options": _TEXT_OPTIONS.get(role, {})}

    def _scorer(self) -> dict[str, Any]:
        if self.scorer is None:
            return {"name": "toxic-bert"}
        if self.scorer in PINNED:
            return {"name": self.scorer, "source": pin_of(self.scorer).source}
        place = Path(self.scorer)
        if place.suffix == ".txt" or self.scorer == "world":
            source = self.scorer if self.scorer == "world" else _absolute(place)
            return {
                "name": "word-list" if self.scorer != "world" else "lexicon",
                "kind": "lexicon",
                "source": source,
            }
        name = re.sub(r"[^A-Za-z0-9._-]", "-", place.name).lstrip("._-")[:60]
        return {
            "name": name or "scorer",
            "source": self.scorer,
            "revision": self.scorer_revision,
            **({"label": self.scorer_label} if self.scorer_label is not None else {}),
        }


#: A user's own file is used whole: nothing of it is held out, and of a folder every text file is read.
_TEXT_OPTIONS: dict[str, dict[str, Any]] = {
    "toxic": {"test_share": 0.0},
    "clean": {"test_share": 0.0, "include": ["**/*.txt"]},
}


def _absolute(path: Path) -> str:
    return os.path.normpath(path.expanduser().absolute())
