"""An experiment file: read from YAML, overridden by key=value, laid over its fidelity's preset, checked.

    load("experiments/tiny.yaml", ["corpus.alpha=0.05"]) -> Experiment

Order: the fidelity preset's values, then the file's, then the overrides, then `limit`. Reading loads neither torch nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unidetox_ray import registry, yaml_file
from unidetox_ray.errors import ConfigError
from unidetox_ray.experiment import Experiment
from unidetox_ray.refusals import no_secrets, plain_text, stays_inside
from unidetox_ray.validation import one_line

#: What each fidelity sets where the file does not. Numbers in brackets: docs/fidelity.md.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "as_released": {
        "data": {"toxic": {"dataset": "dghs", "options": {"version": "both"}}},  # (4.1)
        "toxic": {
            "precision": "bf16_pure",
            "loss_on_padding": True,
            "pad_to": "longest",
            "append_eos": False,
        },
        "corpus": {"kv_cache": "shared", "contrast_dtype": "bf16", "precision": "bf16", "top_k": 50},
        "finetune": {
            "precision": "bf16_pure",
            "loss_on_padding": True,
            "pad_to": "longest",
            "append_eos": False,
        },
        "search": {},
        "evaluate": {
            "top_k": 50,
            "prompt_bos": "never",
            "prefix_cut": "replace",
            "precision": "bf16",
            "group_by": "prompt_text",
            "ppl_precision": "bf16",
            "ppl_encoding": "text",
            "ppl_prompt_cache": "last_seen",
            "mmlu": {"score": "full_text", "loss_dtype": "bf16"},
        },
    },
}


def load(path: str | Path, overrides: Sequence[str] = (), *, limit: int | None = None) -> Experiment:
    """Read an experiment file. ConfigError, one line, naming the place, the value and what is accepted."""
    path = Path(path)
    values = yaml_file.read(path)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds {type(values).__name__}, expected keys such as name, base_family, families, methods"
        )
    return resolve(values, overrides, where=str(path), limit=limit)


def resolve(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    where: str = "experiment",
    limit: int | None = None,
) -> Experiment:
    """`load` for values that are already in memory."""
    merged: dict[str, Any] = json.loads(json.dumps(values))
    for override in overrides:
        _override(merged, override)
    if limit is not None:
        merged["limit"] = limit
    no_secrets(merged, where)
    plain_text(merged, where)
    stays_inside(merged, where)
    fidelity = merged.get("fidelity", "paper")
    if not isinstance(fidelity, str) or fidelity not in PRESETS:
        raise ConfigError(f"{where}: fidelity = {fidelity!r}; {registry.suggest(str(fidelity), PRESETS)}")
    try:
        return Experiment.model_validate(_under(PRESETS[fidelity], merged))
    except ValidationError as error:
        raise ConfigError(f"{where}: {one_line(error)}") from None


def _under(preset: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` on top of `preset`, mapping by mapping; a section the file lacks or nulls stays as the file has it."""
    merged = dict(values)
    for key, preset_value in preset.items():
        if isinstance(preset_value, dict):
            if key not in merged:
                if preset_value:
                    merged[key] = preset_value
            elif merged[key] == preset_value.get("dataset"):  # a data source in its short form
                merged[key] = preset_value
            elif isinstance(merged[key], dict) and not _other_source(preset_value, merged[key]):
                merged[key] = _under(preset_value, merged[key])
        else:
            merged.setdefault(key, preset_value)
    return merged


def _other_source(preset: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """A data source naming another data set takes nothing from the preset's."""
    return "dataset" in preset and value.get("dataset") != preset["dataset"]


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{override!r} is no override; write key=value, for example corpus.alpha=0.05")
    place: Any = values
    for part in parts[:-1]:
        if place.get(part) is None:
            place[part] = {}
        elif isinstance(place[part], str) and parts[0] in {"models", "data"}:
            place[part] = {"source" if parts[0] == "models" else "dataset": place[part]}
        place = place[part]
        if not isinstance(place, dict):
            raise ConfigError(f"{override!r}: {part!r} holds no keys to set {parts[-1]!r} under")
    place[parts[-1]] = yaml_file.parse(text, f"override {key}")


def to_yaml(experiment: Experiment) -> str:
    """The resolved experiment as YAML that `load` reads back to an equal one."""
    import yaml

    values = json.loads(json.dumps(experiment.model_dump(mode="python"), default=str), parse_constant=float)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
