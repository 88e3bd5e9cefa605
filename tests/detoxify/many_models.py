"""Tiny random models of architectures that no file of the package describes, as transformers builds them.

All have more rows in their embedding than the tokenizer of the tests has tokens, and heads, experts, windows and states
that are small but not trivial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf
from random_models import random_model

V = 331
IDS = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
P = {"max_position_embeddings": 64}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PLAIN = {**WIDE, **P, **IDS, "intermediate_size": 48}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64, **IDS}
STATES = {"mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_d_head": 8}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen2 tied": lambda: hf.Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=6),
    "gemma2": lambda: hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=6),
    "gemma3": lambda: hf.Gemma3TextConfig(**GROUPED, **WINDOWS, head_dim=8),
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    "phi": lambda: hf.PhiConfig(**PLAIN),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**PLAIN),
    "gpt-j": lambda: hf.GPTJConfig(**GPTJ),
    "bloom": lambda: hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **IDS),
    "stablelm": lambda: hf.StableLmConfig(**GROUPED),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED),
    "smollm3": lambda: hf.SmolLM3Config(**GROUPED),
    "llama3": lambda: hf.LlamaConfig(**GROUPED, rope_parameters=LLAMA3),
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, **EXPERTS),
    "qwen2-moe": lambda: hf.Qwen2MoeConfig(
        **GROUPED, moe_intermediate_size=16, shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2
    ),
    "phi-moe": lambda: hf.PhimoeConfig(**GROUPED, **EXPERTS),
    "gpt-oss": lambda: hf.GptOssConfig(**GROUPED, **EXPERTS, **WINDOWS, head_dim=8),
    "deepseek-v3": lambda: hf.DeepseekV3Config(
        **PLAIN, num_key_value_heads=4, moe_intermediate_size=16, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        first_k_dense_replace=1,
    ),
    "granite": lambda: hf.GraniteConfig(**GROUPED),
    "cohere": lambda: hf.CohereConfig(**GROUPED),
    "glm": lambda: hf.GlmConfig(**GROUPED, head_dim=8),
    "codegen": lambda: hf.CodeGenConfig(**GPTJ, n_ctx=64),
    "mpt": lambda: hf.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=64, expansion_ratio=2, **IDS),
    "gpt-bigcode": lambda: hf.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, window_size=6,
        attention_types=[[["global", "local"], 1]], **P, **IDS,
    ),
    "xglm": lambda: hf.XGLMConfig(d_model=32, num_layers=2, attention_heads=4, ffn_dim=48, **P, **IDS),
    "biogpt": lambda: hf.BioGptConfig(**PLAIN),
    "starcoder2": lambda: hf.Starcoder2Config(**GROUPED),
    "ctrl": lambda: hf.CTRLConfig(n_embd=32, n_layer=2, n_head=4, n_positions=64, dff=48, vocab_size=V),
    "openai-gpt": lambda: hf.OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=V),
    # State-space, recurrent and hybrid models.
    "mamba": lambda: hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **IDS),
    "mamba2": lambda: hf.Mamba2Config(
        hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8, **IDS
    ),
    "falcon-mamba": lambda: hf.FalconMambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **IDS),
    "rwkv": lambda: hf.RwkvConfig(
        hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=64, **IDS
    ),
    "recurrent-gemma": lambda: hf.RecurrentGemmaConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, lru_width=32,
        attention_window_size=6, **IDS,
    ),
    "falcon-h1": lambda: hf.FalconH1Config(**GROUPED, **STATES, mamba_d_ssm=32, mamba_n_heads=4),
    "bamba": lambda: hf.BambaConfig(**GROUPED, **STATES, attn_layer_indices=[1], mamba_n_heads=8),
    "lfm2": lambda: hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
    "minimax": lambda: hf.MiniMaxConfig(
        **GROUPED, **EXPERTS, head_dim=8, block_size=8, layer_types=["linear_attention", "full_attention"]
    ),
    # Models that hold layers which no text reaches, or which learn nothing.
    "gemma3 with images": lambda: hf.Gemma3Config(
        text_config={**GROUPED, **WINDOWS, "head_dim": 8}, mm_tokens_per_image=4,
        vision_config={**WIDE, "intermediate_size": 48, "image_size": 16, "patch_size": 8},
    ),
    "bart decoder": lambda: hf.BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, is_encoder_decoder=False, is_decoder=True, **P, **IDS,
    ),
    "deepseek-v3.2": lambda: hf.DeepseekV32Config(
        **PLAIN, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, index_n_heads=8, index_head_dim=16, index_topk=32, mlp_layer_types=["dense", "sparse"],
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    ),
    "zamba2": lambda: hf.Zamba2Config(
        **GROUPED | {"num_hidden_layers": 4, "num_key_value_heads": 4}, mamba_d_state=8, n_mamba_heads=8, chunk_size=8,
        adapter_rank=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    ),
    "granite without attention": lambda: hf.GraniteMoeHybridConfig(
        **GROUPED, **STATES, mamba_n_heads=8, num_local_experts=0, shared_intermediate_size=48,
        layer_types=["mamba", "mamba"],
    ),
}  # fmt: skip

#: Decoded without the library's cache: it lacks one, keeps it where rows cannot be copied, or mixes rows up.
WITHOUT_CACHE = {
    "openai-gpt", "rwkv", "recurrent-gemma", "minimax", "bart decoder", "granite without attention"
}  # fmt: skip
#: Where bottleneck adapters cannot stand: no linear layer of theirs is known to end a sub-layer.
NO_BOTTLENECKS = {"mamba", "mamba2", "falcon-mamba", "rwkv", "recurrent-gemma", "ctrl", "granite without attention"}  # fmt: skip


def build(name: str, seed: int = 0) -> Any:
    """The model of this name, float32, in evaluation mode; all parameters random, so that no bias or norm is trivial."""
    return random_model(ARCHITECTURES[name](), seed)
