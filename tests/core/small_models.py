"""Small causal LMs of many architectures with random weights, large enough in scale that attention matters."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
)

V = 97
_WIDE = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4}
_LLAMA = {**_WIDE, "intermediate_size": 48, "num_key_value_heads": 2}

CONFIGS = {
    "gpt2": lambda layers: GPT2Config(
        vocab_size=V, n_embd=32, n_layer=layers, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "opt": lambda layers: OPTConfig(
        **_WIDE, num_hidden_layers=layers, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.0
    ),
    "falcon": lambda layers: FalconConfig(**_WIDE, num_hidden_layers=layers),
    "llama": lambda layers: LlamaConfig(**_LLAMA, num_hidden_layers=layers),
    "falcon-new": lambda layers: FalconConfig(
        **_WIDE, num_hidden_layers=layers, new_decoder_architecture=True, num_kv_heads=2
    ),
    "falcon-alibi": lambda layers: FalconConfig(**_WIDE, num_hidden_layers=layers, alibi=True),
    "bloom": lambda layers: BloomConfig(vocab_size=V, hidden_size=32, n_layer=layers, n_head=4),
    "mistral": lambda layers: MistralConfig(**_LLAMA, num_hidden_layers=layers, sliding_window=4),
    "gemma2": lambda layers: Gemma2Config(
        **_LLAMA, num_hidden_layers=layers, head_dim=8, final_logit_softcapping=3.0, sliding_window=4
    ),
}  # fmt: skip
FAMILIES = ("gpt2", "opt", "falcon", "llama")


def model_of(name: str, layers: int = 2, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same weights at every call. In training mode, without dropout."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](layers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model.to(dtype).train()
