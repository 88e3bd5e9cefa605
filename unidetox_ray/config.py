"""One experiment: read from YAML, overridden by key=value, checked, frozen, hashed.

    load("experiments/tiny.yaml", ["corpus.alpha=0.05"]) -> Experiment

Order: the fidelity preset's values, then the file's, then the overrides, then `limit`. Reading loads neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from unidetox_ray import registry, secrecy, yaml_file
from unidetox_ray.errors import ConfigError
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

Fidelity = Literal["paper", "as_released"]

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

#: Longer than any path; a description may use it.
_LONGEST_TEXT = 4096
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
        return hashable(self, leave_out={"storage", "cache", "tracking", "cluster", "description"})

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


def hashable(section: BaseModel, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """A section as JSON values, with the keys that cannot change a result taken out."""
    values = section.model_dump(mode="json", exclude=set(leave_out))
    values = json.loads(json.dumps(values, default=str))
    if isinstance(values.get("corpus"), dict) and isinstance(section, Experiment):
        values["corpus"]["beta"] = _json_float(section.corpus.beta)
    data = values.get("data")
    if isinstance(data, dict):
        data.pop("data_root", None)
    for part in (values, *(values.get(name) for name in ("toxic", "finetune"))):
        if isinstance(part, dict):
            for how in ("checkpoint_every", "micro_batch"):  # how the steps are taken, not which
                part.pop(how, None)
    return values


def _json_float(value: float) -> float | str:
    return "inf" if math.isinf(value) else value


def digest(value: Any) -> str:
    """SHA-256 of a plain value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


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
    _no_secrets(merged, where)
    _plain_text(merged, where)
    _stays_inside(merged, where)
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


def _no_secrets(values: Any, where: str, place: str = "") -> None:
    if isinstance(values, dict):
        for key, value in values.items():
            name = f"{place}.{key}" if place else str(key)
            if secrecy.is_secret_key(str(key)) or secrecy.holds_secret(str(key)):
                raise ConfigError(
                    f"{where}: {name} looks like a secret, and this file is copied into the run folder and shown in reports; "
                    f"{secrecy.ADVICE}"
                )
            _no_secrets(value, where, name)
    elif isinstance(values, list):
        for index, value in enumerate(values):
            _no_secrets(value, where, f"{place}[{index}]")
    elif isinstance(values, str) and secrecy.holds_secret(values):
        raise ConfigError(
            f"{where}: {place} holds what looks like a secret, and this file is copied into the run folder and shown in "
            f"reports; {secrecy.ADVICE}"
        )


def _plain_text(values: Any, where: str, place: str = "") -> None:
    """ConfigError for text that no file name, log or JSON file can hold: control characters, half of a surrogate pair."""
    if isinstance(values, dict):
        for key, value in values.items():
            name = f"{place}.{key}" if place else str(key)
            _plain_text(str(key), where, f"the key {str(key)[:60]!r}")
            _plain_text(value, where, name)
    elif isinstance(values, list):
        for index, value in enumerate(values):
            _plain_text(value, where, f"{place}[{index}]")
    elif isinstance(values, str):
        allowed = "\n\t" if place in {"description", "data"} else ""
        odd = next((c for c in values if unicodedata.category(c) in {"Cc", "Cs"} and c not in allowed), None)
        if odd is not None:
            raise ConfigError(f"{where}: {place} holds the character U+{ord(odd):04X}; write plain text")
        if len(values) > _LONGEST_TEXT:
            raise ConfigError(f"{where}: {place} has {len(values)} characters; at most {_LONGEST_TEXT}")


def _stays_inside(values: Mapping[str, Any], where: str) -> None:
    """ConfigError for a path with `..` where files are written, or where it would leave data.data_root."""
    tracking, data = values.get("tracking"), values.get("data")
    found: dict[str, Any] = {name: values.get(name) for name in ("storage", "cache")}
    if isinstance(tracking, dict):
        found["tracking.uri"] = tracking.get("uri")
    if isinstance(data, dict):
        for role, sources in data.items():
            for index, source in enumerate(sources if isinstance(sources, list) else [sources]):
                if isinstance(source, dict):
                    place = f"data.{role}[{index}]" if isinstance(sources, list) else f"data.{role}"
                    found[f"{place}.path"] = source.get("path")
    for place, value in found.items():
        if isinstance(value, str) and ".." in re.split(r"[/\\]", value):
            inside = "a path below data.data_root" if place.startswith("data.") else "the whole path"
            raise ConfigError(
                f"{where}: {place} = {value[:200]!r} holds '..'; write {inside}, so that it is the same place for every process"
            )


def one_line(error: ValidationError, section: type[BaseModel] | None = None) -> str:
    """The first problem of a validation error as `place = value: what is accepted`, and how many more there are.

    section: the model that was validated, where its name alone does not tell which it is.
    """
    problems = error.errors(include_url=False)
    problem = problems[0]
    place = ".".join(str(part) for part in problem["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        found = section or _models_by_name().get(error.title, Experiment)
        accepted = _accepted_keys(found, problem["loc"])
        return f"unknown key {place!r}; {registry.suggest(str(problem['loc'][-1]), accepted)}{more}"
    if problem["type"] == "missing":
        return f"{place} is missing; give it a value{more}"
    message = problem["msg"].removeprefix("Value error, ")
    value = json.dumps(problem["input"], default=str)
    shown = (
        "" if isinstance(problem["input"], dict) and problem["type"] == "value_error" else f" = {value[:80]}"
    )
    return f"{place}{shown}: {message}{more}" if place else f"{message}{more}"


def _accepted_keys(section: Any, location: tuple[int | str, ...]) -> list[str]:
    """Keys of the part of `section` that holds `location`, found by walking the models' annotations."""
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        found = section.model_fields.get(part)
        inner = _section_in(found.annotation) if found else None
        section = inner or section
    return list(section.model_fields)


def _models_by_name() -> dict[str, type[BaseModel]]:
    known: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Section]
    while waiting:
        model = waiting.pop()
        known[model.__name__] = model
        waiting.extend(model.__subclasses__())
    return known


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _section_in(inner)
        if found is not None:
            return found
    return None


def to_yaml(experiment: Experiment) -> str:
    """The resolved experiment as YAML that `load` reads back to an equal one."""
    import yaml

    values = json.loads(json.dumps(experiment.model_dump(mode="python"), default=str), parse_constant=float)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
