"""OPT: learned positions with an offset of 2, `</s>` before every text, ReLU, a padding token of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.families import tokenizers
from unidetox_ray.families.base import Family, SpecialIds

if TYPE_CHECKING:
    from transformers import OPTConfig


def tiny_config(
    vocab_size: int, *, hidden: int, layers: int, heads: int, max_positions: int, ids: SpecialIds
) -> OPTConfig:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_positions,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=ids.pad,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
    )


PUBLISHED: dict[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 4096,
    "word_embed_proj_dim": 4096,
    "ffn_dim": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}

FAMILY = Family(
    name="opt",
    hub_id="facebook/opt-6.7b",
    model_type="opt",
    adds_bos=True,
    start_token="bos",
    adapter_targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    value_matrices=(r"model\.decoder\.layers\.\d+\.fc2\.weight",),
    licence="OPT-175B licence (non-commercial research)",
    tiny_config=tiny_config,
    train_tokenizer=tokenizers.opt,
    published=PUBLISHED,
)
