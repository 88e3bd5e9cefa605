"""Falcon: rotary positions, multi-query attention, attention and feed-forward in parallel, no BOS token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.families import tokenizers
from unidetox_ray.families.base import Family, SpecialIds

if TYPE_CHECKING:
    from transformers import FalconConfig

    from unidetox_ray.core.decoder import Block, Decoder

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


def read_lean(model: Any) -> Decoder:
    """See `Family.read_lean`: multi-query, multi-head and the new architecture, rotary or ALiBi, parallel or not."""
    from unidetox_ray.core.decoder import Block, Decoder
    from unidetox_ray.families import reading

    reading.check_plain(model, "FalconForCausalLM")
    config, body = model.config, model.transformer
    new = bool(config.new_decoder_architecture)
    heads = config.num_attention_heads
    size = config.hidden_size // heads
    parallel = bool(config.parallel_attn)
    # transformers builds the new architecture without its parallel norms but adds attention twice; nobody ships that.
    reading.require(parallel or not new, "is of the new architecture but not parallel")
    two_norms = new and config.num_ln_in_parallel_attn == 2

    def block(layer: Any) -> Block:
        first = layer.ln_attn if two_norms else layer.input_layernorm
        second = layer.ln_mlp if two_norms else None if parallel else layer.post_attention_layernorm
        return Block(
            norm=reading.norm(first),
            qkv=reading.matrix(layer.self_attention.query_key_value),
            out=reading.matrix(layer.self_attention.dense),
            norm_mlp=None if second is None else reading.norm(second),
            up=reading.matrix(layer.mlp.dense_h_to_4h),
            gate=None,
            down=reading.matrix(layer.mlp.dense_4h_to_h),
            scale=size**-0.5,
        )

    embedding = reading.embedding(body.word_embeddings)
    return Decoder(
        blocks=tuple(block(layer) for layer in body.h),
        final=reading.norm(body.ln_f),
        head=reading.matrix(model.lm_head),
        embedding=embedding,
        positions=None,
        offset=0,
        rotary=None if config.alibi else reading.rotary(body.rotary_emb, config, size),
        slopes=reading.alibi_slopes(heads, embedding.device) if config.alibi else None,
        heads=heads,
        kv_heads=config.num_kv_heads if new else 1 if config.multi_query else heads,
        head_size=size,
        norm_kind="layer",
        activation=reading.activation(config.activation),
        parallel=parallel,
        grouped=True,
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
    sublayers=(r"transformer\.h\.\d+\.self_attention\.dense", r"transformer\.h\.\d+\.mlp\.dense_4h_to_h"),
    read_lean=read_lean,
)
