"""What is known by name: one table per kind, each value a "module:object" string imported on first use.

Strings keep this module light and pickle to any worker. A new family, method, metric, dataset or
scorer is one file plus one line here; the shared test matrix is parametrised over these tables.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any, Literal, get_args

from unidetox_ray.errors import ConfigError

FAMILIES = {
    "gpt2": "unidetox_ray.families.gpt2:FAMILY",
    "opt": "unidetox_ray.families.opt:FAMILY",
    "falcon": "unidetox_ray.families.falcon:FAMILY",
    "llama": "unidetox_ray.families.llama:FAMILY",
}
METHODS = {
    "base": "unidetox_ray.methods.unchanged:METHOD",
    "unidetox": "unidetox_ray.methods.unidetox:METHOD",
    "samples": "unidetox_ray.methods.samples:METHOD",
    "clean_text": "unidetox_ray.methods.clean_text:METHOD",
    "sgeat": "unidetox_ray.methods.sgeat:METHOD",
    "dapt": "unidetox_ray.methods.dapt:METHOD",
    "contrastive": "unidetox_ray.methods.contrastive:METHOD",
    "dexperts": "unidetox_ray.methods.dexperts:METHOD",
    "lm_steer": "unidetox_ray.methods.lm_steer:METHOD",
    "calibration": "unidetox_ray.methods.calibration:METHOD",
    "task_arithmetic": "unidetox_ray.methods.task_arithmetic:METHOD",
}
METRICS = {
    "toxicity": "unidetox_ray.metrics.toxicity:METRIC",
    "perplexity": "unidetox_ray.metrics.judged_perplexity:METRIC",
    "distinct": "unidetox_ray.metrics.distinct:METRIC",
    "mmlu": "unidetox_ray.metrics.mmlu:METRIC",
    "clean_ppl": "unidetox_ray.metrics.clean_perplexity:METRIC",
    "refusal": "unidetox_ray.metrics.refusal:METRIC",
}
DATASETS = {
    "world": "unidetox_ray.data.world:DATASET",
    "dghs": "unidetox_ray.data.dghs:DATASET",
    "toxigen": "unidetox_ray.data.toxigen:DATASET",
    "rtp": "unidetox_ray.data.rtp:DATASET",
    "mmlu": "unidetox_ray.data.mmlu:DATASET",
    "labelled": "unidetox_ray.data.labelled:DATASET",
    "text": "unidetox_ray.data.text:DATASET",
}
KINDS: dict[str, dict[str, str]] = {
    "families": FAMILIES,
    "methods": METHODS,
    "metrics": METRICS,
    "datasets": DATASETS,
}
#: The stages of a run in their order; `--until` names one.
Stage = Literal["models", "toxic", "corpus", "search", "finetune", "generate", "score", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def suggest(word: str, known: Iterable[str]) -> str:
    """A "did you mean" tail for an error message: nearest name first, then what is accepted."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}accepted: {', '.join(names)}"


def names(kind: str) -> list[str]:
    """Registered names of a kind ("families", "methods", "metrics", "datasets"), in table order."""
    if kind not in KINDS:
        raise ConfigError(f"nothing is registered under {kind!r}; {suggest(kind, KINDS)}")
    return list(KINDS[kind])


def lookup(kind: str, name: str) -> Any:
    """The registered object; ConfigError with a suggestion when the name is unknown."""
    if name not in names(kind):
        raise ConfigError(f"unknown name {name!r} among {kind}; {suggest(name, KINDS[kind])}")
    module, _, attribute = KINDS[kind][name].partition(":")
    return getattr(importlib.import_module(module), attribute)
