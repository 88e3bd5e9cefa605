"""Falcon: rotary positions, multi-query attention, attention and feed-forward in parallel, no BOS token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.families import tokenizers
from unidetox_ray.families.base import Family, SpecialIds

if TYPE_CHECKING:
    from transformers import FalconConfig

_SHAPE: dict[str, Any] = {
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "alibi": False,
    "bias": False,
}


def tiny_config(
    vocab_size: int, *, hidden: int, layers: int, heads: int, max_positions: int, ids: SpecialIds
) -> FalconConfig:
    from transformers import FalconConfig

    return FalconConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_positions,
        bos_token_id=ids.start,
        eos_token_id=ids.eos,
        **_SHAPE,
    )


PUBLISHED: dict[str, Any] = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "max_position_embeddings": 2048,
    **_SHAPE,
}

FAMILY = Family(
    name="falcon",
    hub_id="tiiuae/falcon-7b",
    model_type="falcon",
    adds_bos=False,
    start_token="eos",
    adapter_targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    value_matrices=(r"transformer\.h\.\d+\.mlp\.dense_4h_to_h\.weight",),
    licence="Apache-2.0",
    tiny_config=tiny_config,
    train_tokenizer=tokenizers.falcon,
    published=PUBLISHED,
)
