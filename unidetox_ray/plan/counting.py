"""What of a model decides its memory and its time, counted on a model without numbers: any architecture that transformers builds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unidetox_ray.errors import ModelError
from unidetox_ray.families.positions import positions_of, positive

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from unidetox_ray.core.memory import Shape

_WIDTHS = ("intermediate_size", "moe_intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")


@dataclass(frozen=True)
class Model:
    """parameters: all, tied ones once. frozen: those among them that no training changes. matrix: weights that every token is multiplied with, the head included. widest: values of
    the feed-forward layers that a token goes through, all of a router's chosen experts together. rank_parameters: of a LoRA of
    rank 1, bottleneck_parameters: of bottlenecks of size 1, None where neither can stand. positions: None = unlimited.
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
    rank_parameters: int | None = None
    bottleneck_parameters: int | None = None
    positions: int | None = None
    frozen: int = 0

    @property
    def width(self) -> int:
        return self.layers * self.heads * self.head_size

    def shape(self, itemsize: int) -> Shape:
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


def skeleton(config: PretrainedConfig, name: str, *, classifier: bool = False) -> Any:
    """The config's model with no numbers in it. ModelError: the config describes no such model. name: for the message."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return kind.from_config(config)
    except ImportError as error:
        said = " ".join(str(error).split())[:200]
        said = said.rpartition(". ")[0] or said  # no half sentence
        raise ModelError(f"model {name}: needs a package that is not installed here ({said})") from error
    except Exception as error:  # whatever a model class makes of a config that does not fit it
        said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ModelError(
            f"model {name}: its config.json describes no {'classifier' if classifier else 'causal language model'} that can be "
            f"built ({said}); copy the folder again, or take a model that this version of transformers can build"
        ) from error


def counted(model: Any, name: str) -> Model:
    """model: of `skeleton`."""
    import torch

    config = model.config.get_text_config(decoder=True)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    matrix = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in looked_up)
    if head is not None and id(head.weight) in looked_up:
        matrix += head.weight.numel()
    heads = positive(config, "num_attention_heads") or 1
    hidden = positive(config, "hidden_size") or int(embedding.shape[1])
    return Model(
        name=name,
        layers=positive(config, "num_hidden_layers") or 1,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_size=positive(config, "head_dim") or max(1, hidden // heads),
        widest=_widest(model, config),
        gated=any("gate" in part.rpartition(".")[2] for part, _ in model.named_modules()),
        vocab=int((embedding if head is None else head.weight).shape[0]),
        parameters=sum(p.numel() for p in model.parameters()),
        matrix=matrix,
        rank_parameters=_rank_parameters(model),
        bottleneck_parameters=_bottleneck_parameters(model),
        positions=positions_of(model.config),
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
    )


def _linears(model: Any) -> Iterator[tuple[str, int, int]]:
    """(name, outputs, inputs) of every plain linear layer but the head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            yield name, module.out_features, module.in_features
        elif type(module) is Conv1D:
            yield name, module.nf, module.weight.shape[0]


def _rank_parameters(model: Any) -> int | None:
    from unidetox_ray.families.targets import lora_targets

    try:
        ends = lora_targets(model)
    except ModelError:
        return None
    return sum(
        out + into
        for name, out, into in _linears(model)
        if any(name == end or name.endswith(f".{end}") for end in ends)
    )


def _bottleneck_parameters(model: Any) -> int | None:
    from unidetox_ray.families.bottleneck import places_of

    try:
        places = places_of(model)
    except ModelError:
        return None
    outputs = {name: out for name, out, _ in _linears(model)}
    return 2 * sum(outputs[name] for name in places)


def _kv_heads(config: Any, heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon's first generation
    return positive(config, "num_key_value_heads") or positive(config, "num_kv_heads") or heads


def _widest(model: Any, config: Any) -> int:
    named = max(positive(config, name) or 0 for name in _WIDTHS)
    experts = positive(config, "num_experts_per_tok") or 1
    # A layer that puts out twice the named width is the gate and the rest in one, which `gated` counts.
    outputs = [out for _, out, _ in _linears(model) if out != 2 * named]
    return max([named * experts, *outputs])
