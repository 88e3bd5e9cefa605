"""Tiny random models of every shape that the lean readers know."""

from __future__ import annotations

from typing import Any

from random_models import random_model

VOCAB = 211
_SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}

KINDS = (
    "gpt2",
    "gpt2 by layer",
    "opt",
    "falcon multi-query",
    "falcon alibi",
    "falcon alibi, 6 heads",
    "falcon grouped",
    "falcon grouped, one norm",
    "falcon multi-head in sequence",
    "falcon multi-head alibi",
    "llama",
    "llama grouped",
)


def build(kind: str, seed: int = 0, **extra: Any) -> Any:
    """The model of this kind, float32, eval; all parameters random, so that no bias or norm is trivial."""
    import transformers as hf

    shape = {**_SHAPE, **_SPECIAL}
    family = kind.split()[0]
    sizes: dict[str, Any]
    if family == "gpt2":
        config: Any = hf.GPT2Config(
            n_embd=48,
            n_layer=2,
            n_head=4,
            vocab_size=VOCAB,
            n_positions=160,
            scale_attn_by_inverse_layer_idx="by layer" in kind,
            **_SPECIAL,
            **extra,
        )
    elif family == "opt":
        sizes = {"ffn_dim": 100, "word_embed_proj_dim": 48, "max_position_embeddings": 160}
        config = hf.OPTConfig(**{**shape, **sizes, **extra})
    elif family == "falcon":
        sizes = {
            "alibi": "alibi" in kind,
            "multi_query": "multi-head" not in kind,
            "parallel_attn": "sequence" not in kind,
            "bias": "multi-head" in kind,
            "new_decoder_architecture": "grouped" in kind,
            "num_kv_heads": 2 if "grouped" in kind else None,
            "num_ln_in_parallel_attn": 1 if "one norm" in kind else None,
            "num_attention_heads": 6 if "6 heads" in kind else 4,
        }
        config = hf.FalconConfig(**{**shape, **sizes, **extra})
    else:
        config = hf.LlamaConfig(
            **shape, intermediate_size=100, num_key_value_heads=2 if "grouped" in kind else 4, **extra
        )
    return random_model(config, seed)
