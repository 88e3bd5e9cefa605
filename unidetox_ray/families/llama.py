"""LLaMA-2: rotary positions, RMSNorm, gated feed-forward, untied output layer, `<s>` before every text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.families import tokenizers
from unidetox_ray.families.base import Family, SpecialIds

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from unidetox_ray.core.decoder import Decoder


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


def read_lean(model: Any) -> Decoder:
    """See `Family.read_lean`, with or without grouped queries."""
    from unidetox_ray.core.decoder import Block, Decoder
    from unidetox_ray.families import reading

    reading.check_plain(model, "LlamaForCausalLM")
    config, body = model.config, model.model
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Decoder(
        blocks=tuple(
            Block(
                norm=reading.norm(layer.input_layernorm),
                qkv=reading.matrix(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                out=reading.matrix(layer.self_attn.o_proj),
                norm_mlp=reading.norm(layer.post_attention_layernorm),
                up=reading.matrix(layer.mlp.up_proj),
                gate=reading.matrix(layer.mlp.gate_proj),
                down=reading.matrix(layer.mlp.down_proj),
                scale=size**-0.5,
            )
            for layer in body.layers
        ),
        final=reading.norm(body.norm),
        head=reading.matrix(model.lm_head),
        embedding=reading.embedding(body.embed_tokens),
        positions=None,
        offset=0,
        rotary=reading.rotary(body.rotary_emb, config, size),
        slopes=None,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=size,
        norm_kind="rms",
        activation=reading.activation(config.hidden_act),
        parallel=False,
        grouped=False,
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
    sublayers=(r"model\.layers\.\d+\.self_attn\.o_proj", r"model\.layers\.\d+\.mlp\.down_proj"),
    read_lean=read_lean,
)
