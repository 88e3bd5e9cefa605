"""A family: everything the rest of the package may need to know about one model architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    from unidetox_ray.core.decoder import Decoder

#: How a tokenizer of the family is trained: (texts, vocab_size) -> tokenizer.
TokenizerBuilder = Callable[[list[str], int], "PreTrainedTokenizerFast"]
#: (vocab_size, hidden=, layers=, heads=, max_positions=, ids=SpecialIds) -> config of a small model.
ConfigBuilder = Callable[..., "PretrainedConfig"]
#: Hugging Face model -> its weights as the lean decoder wants them.
LeanReader = Callable[[Any], "Decoder"]


@dataclass(frozen=True)
class SpecialIds:
    """Token ids with a role; None where the tokenizer has none.

    pad fills batches and never carries loss: the tokenizer's own, else eos, else 0 (always masked).
    start is what an unconditional text begins with.
    """

    bos: int | None
    eos: int | None
    pad: int
    start: int


@dataclass(frozen=True)
class Family:
    """One architecture. Everything here is data or a pure function; loading a family's file imports no model."""

    name: str
    hub_id: str
    """The checkpoint of the paper's experiments."""
    model_type: str
    """`config.model_type` in transformers."""
    adds_bos: bool
    """The real tokenizer puts a BOS before every text (OPT, LLaMA yes; GPT-2, Falcon no)."""
    start_token: Literal["bos", "eos"]
    """What an unconditional text begins with; Falcon has no BOS token and uses its end of text."""
    adapter_targets: tuple[str, ...]
    """Names of the linear layers that LoRA adapts."""
    value_matrices: tuple[str, ...]
    """Parameter name patterns of the second feed-forward matrix, whose columns are "values" (Geva et al. 2021)."""
    licence: str
    """Of the hub checkpoint; it travels with derived weights."""
    tiny_config: ConfigBuilder | None
    """Config of a small model of this architecture; dropout 0. None for a family derived from a loaded model."""
    train_tokenizer: TokenizerBuilder | None
    """A tokenizer with the real one's rules, trained on given texts; None likewise."""
    published: dict[str, Any]
    """Arguments of the config class that give the hub checkpoint's shape, known without the network."""
    sublayers: tuple[str, ...] = ()
    """Module name patterns of the linear layers that end the attention and the feed-forward sub-layer, behind which
    bottleneck adapters stand. None named: such adapters are refused."""
    read_lean: LeanReader | None = None
    """Turns a loaded model into the lean decoder's data, or raises `reading.Unsupported`. None: decoded by its own
    forward."""
