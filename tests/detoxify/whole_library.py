"""A small random config of every causal language model that transformers knows, found by the names of its settings."""

from __future__ import annotations

import inspect
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_VALUES: dict[int | float, str] = {
    331: "vocab_size vocab_size_per_layer_input",
    32: "hidden_size d_model n_embd word_embed_proj_dim embedding_size emb_dim dim_model output_embedding_size "
    "encoder_hidden_size lru_width",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_blocks num_key_value_heads num_experts_per_tok moe_topk moe_k num_experts_per_token moe_top_k "
    "global_num_key_value_heads num_global_key_value_heads swa_num_key_value_heads linear_num_key_heads n_mamba_heads "
    "num_query_groups",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts "
    "swa_num_attention_heads linear_num_value_heads linear_num_heads mamba_dt_rank conv_kernel adapter_rank",
    8: "head_dim global_head_dim swa_head_dim swa_v_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim laurel_rank "
    "hidden_size_per_layer_input linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_state mamba_d_head "
    "mamba_chunk_size mamba_n_heads mamba_num_heads mamba_head_dim ssm_state_size chunk_size mamba_headdim patch_size "
    "relative_attention_num_buckets kv_channels attention_head_dim index_n_heads pronunciation_embed_dim shape_embed_dim",
    16: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size q_lora_rank kv_lora_rank index_head_dim image_size "
    "input_embedding_size",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff ffn_hidden_size d_inner dim_ff "
    "intermediate_size_mlp prefix_dense_intermediate_size dense_intermediate_size",
    64: "max_position_embeddings n_positions max_seq_len",
    6: "sliding_window attention_window",
    1: "n_group topk_group num_expert_group first_k_dense_replace n_shared_experts mamba_n_groups mamba_ngroups n_groups",
    10: "pronunciation_vocab_size shape_vocab_size",
    3: "num_channels",
    0: "pad_token_id bos_token_id eos_token_id num_kv_shared_layers",
}  # fmt: skip
_SMALL = {name: value for value, names in _VALUES.items() for name in names.split()}
#: Where None means something of its own.
_OPTIONAL = {"head_dim", "sliding_window", "q_lora_rank", "num_key_value_heads"}
_TYPES = ("layer_types", "mlp_layer_types", "layers_block_type")
_HYBRID = ["mamba", "hybrid", "mamba", "hybrid"]
#: What the names alone do not tell.
_MORE: dict[str, dict[str, Any]] = {
    "dots3_note_text": {
        "num_hidden_layers": 4, "head_dim": 16, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_head_dim": 16,
        "swa_kv_lora_rank": 16, "swa_qk_nope_head_dim": 8, "swa_qk_rope_head_dim": 8, "swa_v_head_dim": 8,
        "swa_num_attention_heads": 4,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")},
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "full_attention"]},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"]
    },
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": _HYBRID, "num_key_value_heads": 4, "attention_head_dim": 16
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": _HYBRID, "num_key_value_heads": 4, "n_mamba_heads": 8,
        "mamba_n_groups": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def small_config(kind: str) -> Any:
    """The config of this model type: two layers, or as many as hold one of each kind of layer that its default holds."""
    first = _made(CONFIG_MAPPING[kind], _MORE.get(kind, {}))
    try:
        wanted = _layer_types(CONFIG_MAPPING[kind]())
    except Exception:  # a default that the library itself refuses
        return first
    if kind in _MORE or wanted <= _layer_types(first):
        return first
    for layers in range(3, 9):
        made = _made(CONFIG_MAPPING[kind], {"num_hidden_layers": layers})
        if wanted <= _layer_types(made):
            return made
    return first


def _layer_types(config: Any) -> set[str]:
    text = config.get_text_config(decoder=True)
    return {str(each) for name in _TYPES for each in getattr(text, name, None) or ()}


def _made(kind: Any, more: dict[str, Any]) -> Any:
    known = set(inspect.signature(kind.__init__).parameters)
    try:
        default = vars(kind())
    except Exception:  # as above
        default = {}
    named = (known | set(default)) - set(getattr(kind, "attribute_map", {}) or {})
    given: dict[str, Any] = {
        name: value
        for name, value in _SMALL.items()
        if name in named and not (name in _OPTIONAL and name in default and default[name] is None)
    }
    if "kv_lora_rank" in named:  # latent attention has no groups
        given["num_key_value_heads"] = 4
    for name, part in (getattr(kind, "sub_configs", None) or {}).items():
        inner = part if part.__name__ != "AutoConfig" else type(default.get(name))
        if name in named and hasattr(inner, "model_type"):
            given[name] = _made(inner, {}).to_dict()
    return kind(**given | more)
