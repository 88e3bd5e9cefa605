"""Scorers by name, path or hub id: which label means toxic, how logits become a probability, and what was opened.

toxic-bert                 a name of `pinned.PINNED`: revision, hash and label are fixed there
./my-classifier            a folder, or org/name[@revision] on the hub: any sequence classifier
words:FILE                 a list of words, one a line: 1 where any of them stands, else 0
NAME=…                     any of these under a name of its own
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unidetox_ray import registry
from unidetox_ray.errors import ConfigError
from unidetox_ray.hashing import digest
from unidetox_ray.metrics.classifier import Activation, LexiconClassifier, ToxicityClassifier
from unidetox_ray.pinned import PINNED, pin_of, warning_of

DEFAULT = "toxic-bert"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
_CLEAN = ("clean", "ignore")


@dataclass(frozen=True)
class ScorerSpec:
    """One scorer before it is opened. `labels`: those that mean toxic, None = the one called so, or the only one.

    `mapped`: every label of the classifier has to be among these; "" = not asked.
    """

    name: str
    source: str
    kind: str = "classifier"
    revision: str | None = None
    sha256: str | None = None
    labels: tuple[str, ...] | None = None
    mapped: tuple[str, ...] = ()
    activation: Activation = "auto"
    pinned: str | None = None
    """The name of its pin."""


def specs_of(
    given: Sequence[str], labels: Sequence[str] = (), maps: Sequence[str] = (), activation: str = "auto"
) -> list[ScorerSpec]:
    """The scorers of the command line, the judge first. labels, maps: `[SCORER:]…`; without a scorer's name for all that are
    not pinned. ConfigError.
    """
    specs = [_spec(text) for text in given or [DEFAULT]]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"--scorer: {twice[0]!r} stands twice; give one of them another name: NAME={twice[0]}"
        )
    if activation not in ("auto", "sigmoid", "softmax"):
        raise ConfigError(f"--activation {activation}: accepted: auto, sigmoid, softmax")
    own = [spec for spec in specs if spec.pinned is None and spec.kind == "classifier"]
    for text in labels:
        owner, wanted = _owner(text, names, "--label")
        chosen = tuple(part.strip() for part in wanted.split("+") if part.strip())
        if not chosen:
            raise ConfigError(f"--label {text}: names no label")
        specs = _changed(specs, owner, own, labels=chosen)
    for text in maps:
        owner, wanted = _owner(text, names, "--label-map")
        mapping = _mapping(wanted, text)
        toxic = tuple(label for label, meaning in mapping.items() if meaning == "toxic")
        specs = _changed(specs, owner, own, labels=toxic, mapped=tuple(mapping))
    if activation != "auto":
        kept: Activation = "sigmoid" if activation == "sigmoid" else "softmax"
        specs = _changed(specs, None, own, activation=kept)
    return specs


def _owner(text: str, names: Sequence[str], option: str) -> tuple[str | None, str]:
    """(scorer's name or None, the rest)."""
    head, colon, rest = text.partition(":")
    if colon and head in names:
        return head, rest
    if colon and "=" not in head and "+" not in head and "," not in head:
        raise ConfigError(
            f"{option} {text}: {head!r} is no scorer of this command; {registry.suggest(head, names)}"
        )
    return None, text


def _mapping(text: str, whole: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        label, equals, meaning = part.rpartition("=")
        meaning = meaning.strip().lower()
        if not equals or not label.strip() or meaning not in ("toxic", *_CLEAN):
            raise ConfigError(
                f"--label-map {whole}: {part.strip()!r} is not LABEL=toxic or LABEL=clean, joined by commas"
            )
        found[label.strip()] = meaning
    if "toxic" not in found.values():
        raise ConfigError(f"--label-map {whole}: no label is mapped to toxic")
    return found


def _changed(
    specs: list[ScorerSpec], owner: str | None, own: Sequence[ScorerSpec], **what: Any
) -> list[ScorerSpec]:
    wanted = {owner} if owner is not None else {spec.name for spec in own}
    if not wanted:
        raise ConfigError(
            "--label, --label-map and --activation: every scorer of this command is pinned with its own"
        )
    return [replace(spec, **what) if spec.name in wanted else spec for spec in specs]


def _spec(text: str) -> ScorerSpec:
    name, equals, source = text.partition("=")
    if not equals or not _NAME.match(name) or Path(text).exists():
        name, source = "", text
    if not source.strip():
        raise ConfigError(f"--scorer {text!r}: names no scorer; {registry.suggest(source, PINNED)}")
    if source in PINNED:
        pin = pin_of(source)
        return ScorerSpec(
            name or source, pin.source, revision=pin.revision, sha256=pin.sha256, labels=(pin.label,),
            activation=pin.activation, pinned=source,
        )  # fmt: skip
    if source.startswith("words:"):
        words = source.removeprefix("words:")
        return ScorerSpec(_named(name or Path(words).stem, text), words, kind="words")
    path = Path(source).expanduser()
    if path.is_dir():
        return ScorerSpec(_named(name or path.absolute().name, text), source)
    if source.startswith((".", "/", "~")):
        raise ConfigError(
            f"--scorer {source}: no such folder; give a classifier that `save_pretrained` wrote"
        )
    if "/" not in source:
        raise ConfigError(
            f"--scorer {source}: neither a folder here nor a scorer's name; {registry.suggest(source, PINNED)}, a folder, or a "
            "hub id org/name"
        )
    model, _, revision = source.partition("@")
    return ScorerSpec(_named(name or model.rpartition("/")[2], text), model, revision=revision or None)


def _named(name: str, text: str) -> str:
    """A name that can stand in a column: letters, digits, dots and dashes."""
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if not made:
        raise ConfigError(f"--scorer {text}: give it a name: NAME={text}")
    return made


@dataclass(frozen=True)
class Scorer:
    """An opened scorer. `key`: what its scores depend on. `about`: what stands beside every number. `warning`: what to say.

    `judge`: `score(texts)` gives a number or None for each, and then `errors` and `full` in the same order.
    """

    name: str
    key: str
    about: dict[str, Any]
    judge: Any
    warning: str | None = None


def opened(spec: ScorerSpec, device: str) -> Scorer:
    """ConfigError, ModelError, ArtifactError (another file than the one that is pinned)."""
    if spec.kind == "words":
        words = LexiconClassifier.from_file(Path(spec.source).expanduser())
        about = {
            "kind": "words",
            "source": Path(spec.source).name,
            "sha256": words.sha256,
            "words": len(words.words),
        }
        return Scorer(spec.name, digest(["words", words.sha256])[:16], {"name": spec.name, **about}, words)
    judge = ToxicityClassifier(
        spec.source, revision=spec.revision, sha256=spec.sha256, label=spec.labels, activation=spec.activation, device=device,
    )  # fmt: skip
    if spec.mapped:
        named = {name.lower() for name in spec.mapped}
        left = sorted(name for name in judge.names_by_index.values() if name.lower() not in named)
        unknown = sorted(named - {name.lower() for name in judge.names_by_index.values()})
        if left or unknown:
            raise ConfigError(
                f"--label-map of {spec.name}: {'lacks ' + repr(left[0]) if left else 'names ' + repr(unknown[0])}; the classifier's "
                f"labels are {sorted(judge.names_by_index.values())}"
            )
    folder = Path(spec.source).expanduser()
    about = {
        "kind": "classifier",
        # A folder's path belongs to this machine; its last part and the hash say which model it was.
        "source": folder.absolute().name if folder.is_dir() else spec.source,
        "revision": spec.revision,
        "sha256": judge.sha256,
        "label": judge.label,
        "head": "sigmoid" if judge.multi_label else "softmax",
        "max_tokens": judge.max_length,
        "pinned": spec.pinned,
    }
    weights = judge.sha256 or _folder_hash(folder) or spec.source
    key = digest(["classifier", weights, spec.revision, judge.label, about["head"], judge.max_length])[:16]
    warning = warning_of(spec.pinned, judge.sha256) if spec.pinned is not None else None
    return Scorer(spec.name, key, {"name": spec.name, **about}, judge, warning)


def _folder_hash(folder: Path) -> str | None:
    """Of a model in shards, which has no single file of weights."""
    if not folder.is_dir():
        return None
    made = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            made.update(hashlib.file_digest(stream, "sha256").digest())
    return made.hexdigest()
