"""What the methods of an experiment need made before them, found from the experiment alone: nothing is opened or run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unidetox_ray import registry
from unidetox_ray.config import Experiment
from unidetox_ray.errors import ConfigError
from unidetox_ray.experiment import MethodEntry, checked
from unidetox_ray.methods.base import CorpusMethod, Method, Need
from unidetox_ray.methods.clean_text import CLEAN
from unidetox_ray.stages.scorers import filter_scorer

#: Fine-tuned copies of a base model, as opposed to what a method fits for itself.
COPIES: tuple[Need, ...] = ("toxic", "expert")
_FIXED = "settings.{} fixes the training and so contradicts"


@dataclass(frozen=True)
class Needed:
    """copies: (need, family) of every fine-tuned copy, families in the order of the experiment, each once.

    sampled: corpus entries decoded here. for_corpora: the copies without which no corpus can be made. fits: labels of the
    entries whose method fits something for itself on every family.
    """

    copies: tuple[tuple[Need, str], ...]
    sampled: tuple[MethodEntry, ...]
    for_corpora: frozenset[Need]
    fits: tuple[str, ...] = ()

    def families(self, need: Need) -> tuple[str, ...]:
        return tuple(family for name, family in self.copies if name == need)


def method_of(entry: MethodEntry) -> Method:
    method: Method = registry.lookup("methods", entry.method)
    return method


def needed(experiment: Experiment) -> Needed:
    """The needs of all method entries. ConfigError, one line, for what the experiment cannot give them."""
    wanted: set[tuple[Need, str]] = set()
    sampled: list[MethodEntry] = []
    for_corpora: set[Need] = set()
    fits: list[str] = []
    for entry in experiment.methods:
        method, settings = method_of(entry), checked(entry.variants[0])
        needs = frozenset().union(*(method.needed_for(checked(variant)) for variant in entry.variants))
        families: Sequence[str] = experiment.families
        if isinstance(method, CorpusMethod):
            source = method.recipe(settings, experiment.corpus).source
            if source == CLEAN and experiment.data.clean is None:
                raise ConfigError(
                    f"methods.{entry.label}: takes its text from data.clean, which is null; name a data set there, "
                    "or a file in the method's settings.source"
                )
            if method.source == "select":
                filter_scorer(experiment, entry)
            if "steps" in entry.tune and entry.settings.get("epochs") is not None:
                raise ConfigError(
                    f"methods.{entry.label}: {_FIXED.format('epochs')} tune.steps; leave one of the two out"
                )
            if method.source == "text" or source != "distil":
                continue
            sampled.append(entry)
            for_corpora |= needs
            families = (experiment.base_family,)
        if "expert" in needs and experiment.data.clean is None:
            raise ConfigError(
                f"methods.{entry.label}: needs an expert trained on clean text, but data.clean is null; name a data set there"
            )
        if "fit" in needs:
            if experiment.data.clean is None:
                raise ConfigError(
                    f"methods.{entry.label}: is fitted on toxic and clean text, but data.clean is null; name a data set there"
                )
            fits.append(entry.label)
        wanted |= {(need, family) for need in needs if need in COPIES for family in families}
    order = list(dict.fromkeys([experiment.base_family, *experiment.families]))
    copies = sorted(wanted, key=lambda copy: (order.index(copy[1]), COPIES.index(copy[0])))
    if experiment.search is not None:
        searched = next(entry for entry in experiment.methods if entry.label == experiment.search.method)
        if method_of(searched).kind != "corpus":
            raise ConfigError(
                f"search.method is {searched.label!r}, whose cells are not fine-tuned; name a corpus method"
            )
        fixed = [name for name in ("epochs", "lr") if searched.settings.get(name) is not None]
        if fixed:
            raise ConfigError(
                f"methods.{searched.label}: {_FIXED.format(fixed[0])} the search of its steps and lr; leave it out there"
            )
    return Needed(tuple(copies), tuple(sampled), frozenset(for_corpora), tuple(fits))
