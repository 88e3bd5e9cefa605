"""OPT: learned positions with an offset of 2, `</s>` before every text, ReLU, a padding token of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.families import tokenizers
from unidetox_ray.families.base import Family, SpecialIds

if TYPE_CHECKING:
    from transformers import OPTConfig

    from unidetox_ray.core.decoder import Decoder


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


def read_lean(model: Any) -> Decoder:
    """See `Family.read_lean`. OPT-350m (norms after the layer, a narrower embedding) is unsupported."""
    from unidetox_ray.core.decoder import Block, Decoder
    from unidetox_ray.families import reading

    reading.check_plain(model, "OPTForCausalLM")
    config, body = model.config, model.model.decoder
    reading.require(config.do_layer_norm_before, "has its norms after the layers")
    reading.require(config.word_embed_proj_dim == config.hidden_size, "projects its embedding")
    reading.require(body.final_layer_norm is not None, "has no final norm")
    size = config.hidden_size // config.num_attention_heads
    return Decoder(
        blocks=tuple(
            Block(
                norm=reading.norm(layer.self_attn_layer_norm),
                qkv=reading.matrix(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                out=reading.matrix(layer.self_attn.out_proj),
                norm_mlp=reading.norm(layer.final_layer_norm),
                up=reading.matrix(layer.fc1),
                gate=None,
                down=reading.matrix(layer.fc2),
                scale=size**-0.5,
            )
            for layer in body.layers
        ),
        final=reading.norm(body.final_layer_norm),
        head=reading.matrix(model.lm_head),
        embedding=reading.embedding(body.embed_tokens),
        positions=reading.embedding(body.embed_positions),
        offset=body.embed_positions.offset,
        rotary=None,
        slopes=None,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_size=size,
        norm_kind="layer",
        activation=reading.activation(config.activation_function),
        parallel=False,
        grouped=False,
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
    sublayers=(r"model\.decoder\.layers\.\d+\.self_attn\.out_proj", r"model\.decoder\.layers\.\d+\.fc2"),
    read_lean=read_lean,
)
