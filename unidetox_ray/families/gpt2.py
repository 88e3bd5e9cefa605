"""GPT-2: learned absolute positions, tied embeddings, Conv1D layers, no padding token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray.families import tokenizers
from unidetox_ray.families.base import Family, SpecialIds

if TYPE_CHECKING:
    from transformers import GPT2Config

    from unidetox_ray.core.decoder import Decoder


def tiny_config(
    vocab_size: int, *, hidden: int, layers: int, heads: int, max_positions: int, ids: SpecialIds
) -> GPT2Config:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=max_positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
    )


def read_lean(model: Any) -> Decoder:
    """See `Family.read_lean`."""
    from unidetox_ray.core.decoder import Block, Decoder
    from unidetox_ray.families import reading

    reading.check_plain(model, "GPT2LMHeadModel")
    config, body = model.config, model.transformer
    reading.require(not config.add_cross_attention, "has cross-attention")
    return Decoder(
        blocks=tuple(
            Block(
                norm=reading.norm(layer.ln_1),
                qkv=reading.matrix(layer.attn.c_attn),
                out=reading.matrix(layer.attn.c_proj),
                norm_mlp=reading.norm(layer.ln_2),
                up=reading.matrix(layer.mlp.c_fc),
                gate=None,
                down=reading.matrix(layer.mlp.c_proj),
                scale=layer.attn.scaling,
            )
            for layer in body.h
        ),
        final=reading.norm(body.ln_f),
        head=reading.matrix(model.lm_head),
        embedding=reading.embedding(body.wte),
        positions=reading.embedding(body.wpe),
        offset=0,
        rotary=None,
        slopes=None,
        heads=config.n_head,
        kv_heads=config.n_head,
        head_size=config.n_embd // config.n_head,
        norm_kind="layer",
        activation=reading.activation(config.activation_function),
        parallel=False,
        grouped=False,
    )


PUBLISHED: dict[str, Any] = {
    "vocab_size": 50257,
    "n_embd": 1600,
    "n_layer": 48,
    "n_head": 25,
    "n_positions": 1024,
}

FAMILY = Family(
    name="gpt2",
    hub_id="openai-community/gpt2-xl",
    model_type="gpt2",
    adds_bos=False,
    start_token="bos",
    adapter_targets=("c_attn", "c_proj", "c_fc"),
    value_matrices=(r"transformer\.h\.\d+\.mlp\.c_proj\.weight",),
    licence="MIT",
    tiny_config=tiny_config,
    train_tokenizer=tokenizers.gpt2,
    published=PUBLISHED,
    sublayers=(r"transformer\.h\.\d+\.attn\.c_proj", r"transformer\.h\.\d+\.mlp\.c_proj"),
    read_lean=read_lean,
)
