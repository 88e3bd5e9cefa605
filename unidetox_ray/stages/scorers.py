"""Opening the toxicity scorers of an experiment from plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unidetox_ray import registry
from unidetox_ray.config import Experiment
from unidetox_ray.errors import ConfigError
from unidetox_ray.experiment import MethodEntry, checked
from unidetox_ray.settings import ScorerRef
from unidetox_ray.stages.models import Handle


def scorer_specs(experiment: Experiment, handles: dict[str, Handle]) -> list[dict[str, Any]]:
    """One JSON value per scorer, the judge first."""
    specs: list[dict[str, Any]] = []
    for scorer in experiment.evaluate.scorers:
        if scorer.kind == "lexicon":
            specs.append(
                {"name": scorer.name, "kind": "lexicon", "words": lexicon(scorer, experiment.data.data_root)}
            )
        else:
            specs.append(
                {
                    "name": scorer.name,
                    "kind": "classifier",
                    "model": handles[scorer.name],
                    "label": scorer.label,
                }
            )
    return specs


def filter_scorer(experiment: Experiment, entry: MethodEntry) -> ScorerRef:
    """The scorer that a filtered corpus is chosen by: never the judge, the first of evaluate.scorers. ConfigError."""
    judge, *others = experiment.evaluate.scorers
    names = [scorer.name for scorer in others]
    wanted = checked(entry).scorer
    if not others:
        raise ConfigError(
            f"methods.{entry.label}: ranks texts by a scorer that does not judge, but evaluate.scorers holds "
            f"{judge.name!r} alone; add a second one there"
        )
    if wanted == judge.name:
        raise ConfigError(
            f"methods.{entry.label}: settings.scorer = {wanted!r} is the judge, the first of evaluate.scorers, and a filter "
            f"by the judge flatters the method; accepted: {', '.join(names)}"
        )
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"methods.{entry.label}: settings.scorer = {wanted!r} is no scorer of evaluate.scorers; "
            f"{registry.suggest(wanted, names)}"
        )
    return others[0] if wanted is None else others[names.index(wanted)]


def lexicon(scorer: ScorerRef, data_root: str | None) -> list[str]:
    if scorer.source == "world":
        from unidetox_ray.data.world import INSULT_WORDS

        return sorted(INSULT_WORDS)
    path = Path(data_root or ".") / scorer.source
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"evaluate.scorers.{scorer.name}: {path} is no readable UTF-8 word list ({error}); give one word a line"
        ) from None
    if not words:
        raise ConfigError(f"evaluate.scorers.{scorer.name}: {path} holds no word; give one word a line")
    return words


def open_scorer(spec: dict[str, Any], device: str) -> Any:
    from unidetox_ray.metrics.toxicity import LexiconClassifier, ToxicityClassifier

    if spec["kind"] == "lexicon":
        return LexiconClassifier(spec["words"])
    model = spec["model"]
    return ToxicityClassifier(
        model["path"],
        revision=model.get("revision"),
        sha256=model.get("sha256"),
        label=spec["label"],
        device=device,
    )
