"""A model of an experiment as `counting` counts it, found without its weights and without the network.

scratch:  the family's small configuration        folder   config.json and the headers of its safetensors files
hub id    a family's published shape, toxic-bert's, or a cached config.json; else one line that says how to give it
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from unidetox_ray import registry
from unidetox_ray.errors import ModelError
from unidetox_ray.plan.counting import Model, counted, skeleton
from unidetox_ray.settings import ModelRef, ScorerRef, ScratchSection

#: unitary/toxic-bert is BERT-base with six labels (its config.json; shared notes on the datasets, section 5).
_KNOWN_CLASSIFIERS = {"unitary/toxic-bert"}
#: More than a header of any real file.
_LARGEST_HEADER = 100 << 20


def family_model(ref: ModelRef, family: str) -> Model:
    """The model of a family. ModelError, one line, where its shape cannot be known here."""
    if ref.source == "scratch:":
        return _scratch(family, ref.scratch or ScratchSection())
    return _named(ref.source, ref.revision, f"models.{family}")


def judge_model(name: str) -> Model:
    """A hub id or folder that judges perplexity."""
    return _named(name, None, "evaluate.ppl_model")


def scorer_model(scorer: ScorerRef) -> Model | None:
    """A toxicity classifier; None for a word list."""
    if scorer.kind != "classifier":
        return None
    if scorer.source == "scratch:":
        return _scratch_classifier(scorer.scratch or ScratchSection())
    return _named(scorer.source, scorer.revision, f"evaluate.scorers.{scorer.name}", classifier=True)


def classifier_model(source: str, revision: str | None, where: str) -> Model:
    return _named(source, revision, where, classifier=True)


@lru_cache(maxsize=64)
def _scratch(family: str, spec: ScratchSection) -> Model:
    from unidetox_ray.families.base import SpecialIds

    entry = registry.lookup("families", family)
    if entry.tiny_config is None or spec.hidden % spec.heads:
        raise ModelError(
            f"models.{family}: scratch: hidden = {spec.hidden} and heads = {spec.heads} do not fit; hidden must be a multiple of heads"
        )
    config = entry.tiny_config(
        spec.vocab_size, hidden=spec.hidden, layers=spec.layers, heads=spec.heads, max_positions=spec.max_positions,
        ids=SpecialIds(bos=0, eos=0, pad=0, start=0),
    )  # fmt: skip
    return of_config(config, "scratch:")


@lru_cache(maxsize=64)
def _scratch_classifier(spec: ScratchSection) -> Model:
    from transformers import BertConfig

    return of_config(
        BertConfig(
            vocab_size=spec.vocab_size, hidden_size=spec.hidden, num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads, intermediate_size=4 * spec.hidden, max_position_embeddings=spec.max_positions,
        ),
        "scratch:", classifier=True,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _named(source: str, revision: str | None, where: str, *, classifier: bool = False) -> Model:
    from unidetox_ray.families.loading import offline_config

    place = Path(source).expanduser()
    if place.is_dir():
        return _folder(place, source, classifier)
    if source.startswith((".", "/", "~")):
        raise ModelError(
            f"{where}: {source}: no such folder; give a model folder with config.json, or a hub id"
        )
    if classifier and source in _KNOWN_CLASSIFIERS:
        from transformers import BertConfig

        return of_config(
            BertConfig(id2label={index: str(index) for index in range(6)}), source, classifier=True
        )
    if not classifier:
        try:
            return of_config(offline_config(source), source)
        except ModelError:
            pass  # not one of the families' own checkpoints
    config = _cached_config(source, revision)
    if config is None:
        key = "evaluate.scorers" if classifier else where
        raise ModelError(
            f"{where}: {source}: its shape is not known and no config.json of it is cached; download that file once "
            f"(`hf download {source} config.json`), or set {key} to a folder that holds it"
        )
    return of_config(config, source, classifier=classifier)


def _cached_config(source: str, revision: str | None) -> Any:
    """Of the local hub cache; None where it has none. Never the network."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(source, "config.json", revision=revision)
    except ValueError:
        return None  # no name that the hub could have
    return _read_config(Path(found).parent, source) if isinstance(found, str) else None


def _read_config(folder: Path, said: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # nosec B615 - a folder that lies here
    except Exception as error:  # whatever transformers raises for whatever the file holds
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{said}: its config.json describes no model that is known here ({reason}); take another model"
        ) from None


def _folder(folder: Path, said: str, classifier: bool) -> Model:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{said}: holds no config.json; give a folder that `save_pretrained` wrote")
    model = of_config(_read_config(folder, said), folder.name, classifier=classifier)
    stored = _stored_parameters(folder)
    # Tied weights are stored once, a config without its weights has none: the larger truth is the file's.
    return model if stored is None else replace(model, parameters=max(stored, 1))


def _stored_parameters(folder: Path) -> int | None:
    """Numbers in the safetensors files by their headers alone; None where there is no such file. ModelError: damaged."""
    files = sorted(folder.glob("*.safetensors"))
    total = 0
    for path in files:
        try:
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > _LARGEST_HEADER:
                    raise ValueError("its header is too long")
                header = json.loads(stream.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    count = 1
                    for size in entry["shape"]:
                        count *= int(size)
                    total += count
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise ModelError(f"{path}: no safetensors file ({error}); copy the folder again") from None
    return total if files else None


def of_config(config: Any, name: str, *, classifier: bool = False) -> Model:
    return counted(skeleton(config, name, classifier=classifier), name)
