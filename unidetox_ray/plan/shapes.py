"""What of a model decides its memory and its time, found without its weights and without the network.

scratch:  the family's small configuration        folder   config.json and the headers of its safetensors files
hub id    a family's published shape, toxic-bert's, or a cached config.json; else one line that says how to give it
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from unidetox_ray import registry
from unidetox_ray.errors import ModelError
from unidetox_ray.settings import ModelRef, ScorerRef, ScratchSection

#: unitary/toxic-bert is BERT-base with six labels (its config.json; shared notes on the datasets, section 5).
_KNOWN_CLASSIFIERS = {"unitary/toxic-bert"}
_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")
#: More than a header of any real file.
_LARGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Model:
    """parameters: all, tied ones once. matrix: weights that every token is multiplied with, the head included. widest: of the
    feed-forward layers. adapter_parameters: of a LoRA of rank 1 on the family's targets. positions: None = unlimited.
    width: layers x heads x head size, for attention's own products."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    widest: int
    gated: bool
    vocab: int
    parameters: int
    matrix: int
    rank_parameters: int = 0
    positions: int | None = None

    @property
    def width(self) -> int:
        return self.layers * self.heads * self.head_size

    def shape(self, itemsize: int) -> Any:
        """As `core.memory`, which sizes the run's own batches, wants it."""
        from unidetox_ray.core.memory import Shape

        return Shape(
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_size,
            self.hidden,
            self.widest,
            self.vocab,
            itemsize,
        )


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
    return of_config(config, "scratch:", entry.adapter_targets)


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
            return of_config(offline_config(source), source, _targets(source))
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


def _targets(source: str) -> tuple[str, ...]:
    for name in registry.names("families"):
        family = registry.lookup("families", name)
        if source in (family.hub_id, family.hub_id.split("/")[-1]):
            return tuple(family.adapter_targets)
    return ()


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


def of_config(config: Any, name: str, targets: tuple[str, ...] = (), *, classifier: bool = False) -> Model:
    """Counted on a model without memory (the meta device)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = kind.from_config(config)
    except Exception as error:  # a configuration that its own class refuses
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{name}: no {'classifier' if classifier else 'causal language model'} ({reason})"
        ) from None
    text = config.get_text_config()
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    matrix = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in looked_up)
    head = None if classifier else model.get_output_embeddings()
    if head is not None and id(head.weight) in looked_up:
        matrix += head.weight.numel()
    names = [part for part, _ in model.named_modules()]
    heads = int(getattr(text, "num_attention_heads", 0) or 1)
    hidden = int(text.hidden_size)
    layers = int(getattr(text, "num_hidden_layers", 0) or 1)
    head_size = int(getattr(text, "head_dim", None) or hidden // heads)
    ranks = 0
    for part, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if (
            weight is not None
            and weight.dim() == 2
            and part.rpartition(".")[2] in (targets or ("q_proj", "k_proj", "v_proj", "o_proj"))
        ):
            ranks += sum(weight.shape)
    return Model(
        name=name, layers=layers, hidden=hidden, heads=heads, kv_heads=_kv_heads(text, heads), head_size=head_size,
        widest=_widest(text, hidden), gated=any("gate" in part.rpartition(".")[2] for part in names),
        vocab=int(text.vocab_size), parameters=sum(p.numel() for p in model.parameters()), matrix=matrix, rank_parameters=ranks,
        positions=getattr(text, "max_position_embeddings", None),
    )  # fmt: skip


def _kv_heads(config: Any, heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon's first generation
    return int(getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads)


def _widest(config: Any, hidden: int) -> int:
    for name in _WIDTHS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 4 * hidden
