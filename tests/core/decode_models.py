"""Small models of every registered family's architecture, Falcon's variants and others, for the tests of the engine."""

from __future__ import annotations

import torch
import transformers as hf

from unidetox_ray.core.logits import contrastive
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.lean import lean_of

V = 97
IDS = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAINLY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**PLAINLY, "intermediate_size": 96}


def gpt2(**more):
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=96, **IDS, **more))


def falcon(**more):
    return hf.FalconForCausalLM(hf.FalconConfig(**PLAINLY, **IDS, **more))


ARCHITECTURES = {
    "gpt2": gpt2,
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(ffn_dim=96, word_embed_proj_dim=48, max_position_embeddings=96, **PLAINLY, **IDS)
    ),
    "falcon": lambda: falcon(multi_query=True, parallel_attn=True),
    "falcon-alibi": lambda: falcon(alibi=True, multi_query=False, parallel_attn=False),
    "falcon-new": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "llama-gqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, **SMALL, **IDS)),
}
#: No family of ours: decoded by their own forward.
OTHERS = {
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(num_key_value_heads=2, **SMALL, **IDS)),
    "mistral": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(num_key_value_heads=2, sliding_window=6, **SMALL, **IDS)
    ),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL, **IDS)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=48, n_layer=2, n_head=4, **IDS)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(num_key_value_heads=2, head_dim=12, sliding_window=6, **SMALL, **IDS)
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(hidden_size=48, num_hidden_layers=2, state_size=4, **IDS)
    ),
}
PROMPTS = [[1, 20, 30], [5], [7, 8, 9, 10, 11, 12, 13]]
UNIDETOX = contrastive(alpha=0.1)


def model(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = {**ARCHITECTURES, **OTHERS}[name]().eval()
    with torch.no_grad():  # random initial weights are nearly uniform; spread them so that mistakes show
        for parameter in made.parameters():
            parameter.mul_(3)
    return made


def lean(given):
    runner = lean_of(given)
    assert runner is not None
    return runner


RUNNERS = {"lean": lean, "generic": GenericRunner}


def arguments(rows: int, steps: int = 20, seed: int = 3) -> dict:
    return {"uniform": uniforms(seed, range(rows), steps), "max_new_tokens": steps, "end_ids": [2]}
