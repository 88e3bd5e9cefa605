"""The engine against its slow twin, for every registered family's architecture and Falcon's variants."""

import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)  # fmt: skip

from unidetox_ray.core.decode import decode, decode_slowly, only_model
from unidetox_ray.core.lm import CachedLM, left_padded
from unidetox_ray.core.logits import Sampling, contrast
from unidetox_ray.core.streams import uniforms

V = 97
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ARCHITECTURES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=96, **IDS)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(ffn_dim=96, word_embed_proj_dim=48, max_position_embeddings=96, **SMALL, **IDS)
    ),
    "falcon": lambda: FalconForCausalLM(FalconConfig(multi_query=True, parallel_attn=True, **SMALL, **IDS)),
    "falcon-alibi": lambda: FalconForCausalLM(
        FalconConfig(alibi=True, multi_query=False, parallel_attn=False, **SMALL, **IDS)
    ),
    "falcon-new": lambda: FalconForCausalLM(
        FalconConfig(new_decoder_architecture=True, num_kv_heads=2, **SMALL, **IDS)
    ),
    "llama-gqa": lambda: LlamaForCausalLM(
        LlamaConfig(num_key_value_heads=2, intermediate_size=96, **SMALL, **IDS)
    ),
}
PROMPTS = [[1, 20, 30], [5], [7, 8, 9, 10, 11, 12, 13]]


def model(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = ARCHITECTURES[name]().eval()
    with torch.no_grad():  # random initial weights are nearly uniform; spread them so that mistakes show
        for parameter in made.parameters():
            parameter.mul_(3)
    return made


@pytest.fixture(params=sorted(ARCHITECTURES))
def pair(request):
    return model(request.param, 0), model(request.param, 1)


def arguments(rows: int, steps: int = 20, seed: int = 3) -> dict:
    return {"uniform": uniforms(seed, range(rows), steps), "max_new_tokens": steps, "end_ids": [2]}


def unidetox(logits):
    return contrast(logits[0], logits[1], alpha=0.1)


@torch.inference_mode()
def test_cached_logits_equal_a_full_pass_with_left_padding(pair):
    base, _ = pair
    base = base.double()
    ids, mask = left_padded(PROMPTS, pad_id=0)
    cached = CachedLM(base)
    logits = cached.prefill(ids, mask)
    rows = [list(prompt) for prompt in PROMPTS]
    for token in (17, 3, 60, 8):
        for row, prefix in enumerate(rows):
            full = base(input_ids=torch.tensor([prefix])).logits[0, -1]
            assert torch.allclose(logits[row], full, atol=1e-9), (row, token)
            prefix.append(token)
        logits = cached.step(torch.tensor([token] * len(rows)))


@pytest.mark.parametrize("combine", [only_model, unidetox], ids=["one-model", "contrast"])
def test_engine_equals_slow_twin(pair, combine):
    models = list(pair) if combine is unidetox else [pair[0]]
    options = {**arguments(12), "copies": 4, "sampling": Sampling(top_p=0.95), "combine": combine}
    free = decode(models, PROMPTS, pad_id=0, **{**options, "end_ids": []})
    # End tokens taken from what the models say, so that some rows end early and leave the batch.
    options["end_ids"] = [free[0].ids[9], free[5].ids[4]]
    fast = decode(models, PROMPTS, pad_id=0, **options)
    assert fast == decode_slowly(models, PROMPTS, **options)
    assert sum(sequence.ended for sequence in fast) >= 2
    assert fast != free


def test_text_does_not_depend_on_batch_or_order(pair):
    """Counter-based streams: the same sequences alone, together, and the other way round."""
    identities = [("a", PROMPTS[0]), ("b", PROMPTS[1]), ("c", PROMPTS[2]), ("d", PROMPTS[0])]

    def sample(chosen):
        options = {"max_new_tokens": 16, "end_ids": [2], "pad_id": 0, "combine": unidetox}
        found = decode(
            list(pair),
            [prompt for _, prompt in chosen],
            uniform=uniforms(9, [name for name, _ in chosen], 16),
            **options,
        )
        return {name: sequence for (name, _), sequence in zip(chosen, found, strict=True)}

    together = sample(identities)
    assert sample(identities[::-1]) == together
    assert {**sample(identities[:1]), **sample(identities[1:])} == together
    assert together["a"] != together["d"]  # same prompt, another stream


def test_shared_cache_of_the_released_code_changes_the_text_from_the_second_token(pair):
    """Defect 1: the first contrast is right, later ones read the wrong keys and values."""
    options = {**arguments(24), "copies": 8, "pad_id": 0, "combine": unidetox}
    right = decode(list(pair), PROMPTS, **options)
    shared = decode(list(pair), PROMPTS, shared_cache=True, **options)
    assert [s.ids[:1] for s in shared] == [s.ids[:1] for s in right]
    assert [s.ids for s in shared] != [s.ids for s in right]


def test_shared_cache_with_equal_models_is_no_difference():
    same = model("gpt2", 0)
    options = {**arguments(3), "pad_id": 0, "combine": unidetox}
    assert decode([same, same], PROMPTS, shared_cache=True, **options) == decode(
        [same, same], PROMPTS, **options
    )


def test_wrong_shapes_are_refused():
    tiny = model("gpt2", 0)
    with pytest.raises(ValueError, match="expected"):
        decode([tiny], PROMPTS, uniform=uniforms(0, [1], 4), max_new_tokens=4, end_ids=[], pad_id=0)
    with pytest.raises(ValueError, match="empty"):
        left_padded([[1], []], 0)


def test_streams_are_keyed_by_seed_and_identity():
    first = uniforms(1, ["x", "y"], 6)
    assert torch.equal(uniforms(1, ["y", "x"], 6), first.flip(0))
    assert torch.equal(uniforms(1, ["x"], 3), first[:1, :3])
    assert not torch.equal(uniforms(2, ["x"], 6), first[:1])
    assert not torch.equal(uniforms(1, [0], 6), uniforms(1, [1], 6))
    assert float(first.min()) >= 0.0 and float(first.max()) < 1.0
