"""One experiment, typed, checked as a whole, frozen, hashed. `config` reads it."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from unidetox_ray import registry
from unidetox_ray.hashing import digest, hashable
from unidetox_ray.settings import (
    ClusterSection,
    ContentSection,
    CorpusSection,
    Count,
    DataSection,
    EvaluateSection,
    FinetuneSection,
    Model,
    ModelRef,
    Number,
    SearchSection,
    Section,
    ToxicSection,
    TrackingSection,
    TuningSection,
)
from unidetox_ray.validation import one_line

Fidelity = Literal["paper", "as_released"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _values(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("must be a list of at least one value to try")
    return value


class MethodEntry(Section):
    """One column of the comparison: a registered method, its settings, and the label results carry."""

    method: str
    """A name of `unidetox ls methods`."""
    label: Annotated[
        str, Field(pattern=_NAME, max_length=60, default_factory=lambda found: found.get("method", ""))
    ]
    """Name of its cells and columns; the method's own where none is given."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The method's own settings: its page lists them."""
    tune: dict[str, Annotated[tuple[Any, ...], BeforeValidator(_values)]] = Field(default_factory=dict)
    """Values to try of each setting; every combination is a trial. Corpus methods: `steps` and `lr` of the fine-tuning."""

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every combination of the values to try; one empty one where nothing is tuned."""
        return [
            dict(zip(self.tune, values, strict=True)) for values in itertools.product(*self.tune.values())
        ]

    @property
    def variants(self) -> list[MethodEntry]:
        """The entry at each of its points; corpus methods' points are the fine-tuning's and change no entry."""
        if registry.lookup("methods", self.method).kind == "corpus":
            return [self]
        return [self.model_copy(update={"settings": {**self.settings, **point}}) for point in self.points]


def _method(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class Experiment(Section):
    """A whole experiment, resolved."""

    name: Annotated[str, Field(pattern=_NAME, max_length=80)]
    """Names the run folder."""
    description: str = ""
    """For people."""
    seed: Number = 1234
    """Seed of the fine-tuning cells."""
    seeds: tuple[Number, ...] = ()
    """Several seeds = one cell each; empty = [seed]."""
    storage: Annotated[str, Field(min_length=1)] = "outputs"
    """Parent of the run folder: a path, an NFS mount, s3:// or gs://; not hashed."""
    cache: str | None = None
    """Where `scratch:` models are kept; null = <storage>/cache; not hashed."""
    fidelity: Fidelity = "paper"
    """Which values stand where the file says nothing: docs/fidelity.md."""
    base_family: str
    """The family that corpora are distilled from."""
    families: Annotated[tuple[str, ...], Field(min_length=1)]
    """The models to detoxify and measure: names of `unidetox ls families`."""
    methods: Annotated[
        tuple[
            Annotated[MethodEntry, BeforeValidator(_method, json_schema_input_type=str | MethodEntry)], ...
        ],
        Field(min_length=1),
    ]
    """What is compared: names, or entries with label and settings."""
    models: dict[str, Model] = Field(default_factory=dict)
    """Per family; a family left out uses its hub id."""
    data: DataSection = DataSection()
    """Where texts, prompts and questions come from."""
    toxic: ToxicSection = ToxicSection()
    """Training of the toxic model."""
    corpus: CorpusSection = CorpusSection()
    """Distillation."""
    finetune: FinetuneSection = FinetuneSection()
    """Training on the corpus."""
    search: SearchSection | None = None
    """Steps × learning rate; null = `finetune:` as it stands."""
    tuning: TuningSection = TuningSection()
    """How methods with `tune:` are chosen."""
    evaluate: EvaluateSection = EvaluateSection()
    """The protocol: sampling, scorers, metrics."""
    content: ContentSection = ContentSection()
    """Classifiers of the corpora themselves."""
    tracking: TrackingSection = TrackingSection()
    """Where MLflow records the run."""
    cluster: ClusterSection = ClusterSection()
    """How work is spread; never part of a key."""
    limit: Count | None = None
    """At most this many corpus texts, prompts per split, quiz items and clean texts; a smoke run, never a result."""

    @field_validator("families")
    @classmethod
    def _families_known(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        for family in families:
            if family not in registry.FAMILIES:
                raise ValueError(f"unknown family {family!r}; {registry.suggest(family, registry.FAMILIES)}")
        if len(set(families)) != len(families):
            raise ValueError(f"names a family twice: {list(families)}")
        return families

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"names a seed twice: {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.base_family not in registry.FAMILIES:
            raise ValueError(
                f"base_family: unknown family {self.base_family!r}; {registry.suggest(self.base_family, registry.FAMILIES)}"
            )
        for family in self.models:
            if family not in registry.FAMILIES:
                raise ValueError(
                    f"models: unknown family {family!r}; {registry.suggest(family, registry.FAMILIES)}"
                )
        if self.cache is None and self.name.lower() == "cache":
            raise ValueError(
                "name = 'cache' is the folder where storage keeps models; take another name, or set cache"
            )
        labels: set[str] = set()
        for entry in self.methods:
            if entry.method not in registry.METHODS:
                raise ValueError(
                    f"methods: unknown method {entry.method!r}; {registry.suggest(entry.method, registry.METHODS)}"
                )
            if entry.label.lower() in labels:
                raise ValueError(
                    f"methods: the label {entry.label!r} stands twice (case aside, for it names files); give one of them a `label:`"
                )
            labels.add(entry.label.lower())
            checked(entry)
            check_tune(entry)
        for role in ("toxic", "prompts", "clean", "mmlu", "scorer"):
            source = getattr(self.data, role)
            if source is not None and source.dataset not in registry.DATASETS:
                raise ValueError(
                    f"data.{role}: unknown data set {source.dataset!r}; {registry.suggest(source.dataset, registry.DATASETS)}"
                )
        scratch = [name for name, ref in self.models.items() if ref.source == "scratch:"]
        if scratch and not self.data.pretrain:
            raise ValueError(
                f"models.{scratch[0]} is 'scratch:' but data.pretrain is empty; name the text to pre-train on"
            )
        if self.data.scorer is None and any(scorer.source == "scratch:" for scorer in self.evaluate.scorers):
            raise ValueError(
                "evaluate.scorers: a 'scratch:' scorer needs data.scorer, labelled comments to train on"
            )
        if self.search is not None and self.search.method not in {entry.label for entry in self.methods}:
            raise ValueError(f"search.method is {self.search.method!r}, which is no label in methods")
        if self.search is not None and self.base_family not in self.families:
            raise ValueError(f"search needs the base family {self.base_family!r} among families")
        tuned = next((entry.label for entry in self.methods if entry.tune), None)
        if tuned and self.tuning.reuse != "per_model" and self.base_family not in self.families:
            raise ValueError(
                f"methods.{tuned}: tune needs the base family {self.base_family!r} among families; or tuning.reuse: per_model"
            )
        return self

    def model_of(self, family: str) -> ModelRef:
        """The family's model: as configured, else its hub id."""
        return self.models.get(family) or ModelRef(source=registry.lookup("families", family).hub_id)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return self.seeds or (self.seed,)

    def hashed(self) -> dict[str, Any]:
        """Everything that can change a result, as plain values."""
        values = hashable(self, leave_out={"storage", "cache", "tracking", "cluster", "description"})
        values["corpus"]["beta"] = "inf" if math.isinf(self.corpus.beta) else self.corpus.beta
        return values

    @property
    def key(self) -> str:
        return digest(self.hashed())


def checked(entry: MethodEntry) -> Any:
    """The method's typed settings; ValueError in the words of the user."""
    settings: type[Section] = registry.lookup("methods", entry.method).settings
    try:
        return settings.model_validate(entry.settings)
    except ValidationError as error:
        raise ValueError(f"methods.{entry.label}: {one_line(error, settings)}") from None


def check_tune(entry: MethodEntry) -> None:
    """ValueError in the words of the user, unless every point of the entry's grid is a setting that can be tuned."""
    if not entry.tune:
        return
    where = f"methods.{entry.label}.tune"
    method = registry.lookup("methods", entry.method)
    section: type[Section] = FinetuneSection if method.kind == "corpus" else method.settings
    accepted = ["lr", "steps"] if method.kind == "corpus" else list(section.model_fields)
    if not accepted:
        raise ValueError(f"{where}: {entry.method} has no setting to tune")
    for name, values in entry.tune.items():
        if name not in accepted:
            hint = "; another corpus needs an entry of its own" if method.kind == "corpus" else ""
            raise ValueError(f"{where}: {name!r} cannot be tuned; {registry.suggest(name, accepted)}{hint}")
        if name in entry.settings:
            raise ValueError(f"{where}: {name!r} stands in `settings` as well; leave one of the two")
        if len({digest(value) for value in values}) != len(values):
            raise ValueError(f"{where}.{name}: holds a value twice")
    given = {} if method.kind == "corpus" else entry.settings
    seen: set[str] = set()
    for point in entry.points:
        try:
            typed = section.model_validate({**given, **point})
        except ValidationError as error:
            raise ValueError(f"{where}: {one_line(error, section)}") from None
        seen.add(digest({name: getattr(typed, name) for name in point}))
    if len(seen) != len(entry.points):
        raise ValueError(f"{where}: holds a value twice, written differently")
