"""LLaMA-2: rotary positions, RMSNorm, gated feed-forward, untied output layer, `<s>` before every text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.families import tokenizers
from unidetox_ray.families.base import Family, SpecialIds

if TYPE_CHECKING:
    from transformers import LlamaConfig


def tiny_config(
    vocab_size: int, *, hidden: int, layers: int, heads: int, max_positions: int, ids: SpecialIds
) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        # Three matrices instead of two: 8/3 of the width costs as much as the others' factor 4.
        intermediate_size=-(-8 * hidden // 24) * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_positions,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
    )


PUBLISHED: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}

FAMILY = Family(
    name="llama",
    hub_id="meta-llama/Llama-2-7b-hf",
    model_type="llama",
    adds_bos=True,
    start_token="bos",
    adapter_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    value_matrices=(r"model\.layers\.\d+\.mlp\.down_proj\.weight",),
    licence="Llama 2 Community License (gated; its text travels with derived weights)",
    tiny_config=tiny_config,
    train_tokenizer=tokenizers.llama,
    published=PUBLISHED,
)
