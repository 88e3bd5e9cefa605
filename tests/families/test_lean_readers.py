"""Lean decoders read from Hugging Face models: the same logits as the model's own forward, or a reason why not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lean_models import KINDS, VOCAB, build
from torch import Tensor

from unidetox_ray.core.lean import LeanRunner
from unidetox_ray.families.lean import lean_of, lean_or_reason, read
from unidetox_ray.families.reading import alibi_slopes

#: Largest difference relative to the largest logit. LLaMA's norm is float32 inside whatever the model's dtype.
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}


def limit_of(kind: str, dtype: torch.dtype) -> float:
    return 1e-6 if kind.startswith("llama") and dtype == torch.float64 else LIMITS[dtype]


def error_of(
    model: Any, runner: LeanRunner, lengths: tuple[int, ...] = (5, 1, 33, 16, 17), new: int = 18
) -> float:
    """Cached logits of several prompts in one batch against the whole text through the model, one text at a time."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCAB, (len(lengths), max(lengths) + new), generator=draw)
    runner.open(len(lengths), max(lengths) + new)
    rows, worst = torch.arange(len(lengths)), 0.0
    seen = [runner.prefill(ids[:, : max(lengths)], torch.tensor(lengths), rows).clone()]
    for step in range(new):
        seen.append(runner.step(ids[rows, torch.tensor(lengths) + step]).clone())
    got = torch.stack(seen, dim=1)
    model.eval()
    for row, length in enumerate(lengths):
        with torch.no_grad():
            whole: Tensor = model(input_ids=ids[row : row + 1, : length + new], use_cache=False).logits[
                0, length - 1 :
            ]
        worst = max(
            worst, float((got[row].double() - whole.double()).abs().max() / whole.double().abs().max())
        )
    return worst


def train(model: Any, steps: int = 3) -> None:
    """A few steps that change every weight a good deal."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(9))
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("through_ops", [False, True], ids=["cpu", "ops"])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_equal_a_full_recompute_before_and_after_training(kind: str, through_ops: bool) -> None:
    model = build(kind)
    runner, reason = lean_or_reason(model, through_ops=through_ops)
    assert runner is not None, reason
    assert error_of(model, runner) < limit_of(kind, torch.float32)
    before = runner.step(torch.arange(5)).clone()
    train(model)
    # The same runner: packed copies of the old weights must not be used.
    assert error_of(model, runner) < limit_of(kind, torch.float32)
    assert not torch.allclose(runner.step(torch.arange(5)), before, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_precisions(kind: str, dtype: torch.dtype) -> None:
    model = build(kind).to(dtype)
    for through_ops in (False, True):
        runner = lean_of(model, through_ops=through_ops)
        assert runner is not None
        assert error_of(model, runner) < limit_of(kind, dtype)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_fixed_rotary_scalings(rope: dict[str, Any]) -> None:
    model = build("llama grouped", rope_parameters={"rope_theta": 10000.0, **rope})
    runner = lean_of(model)
    assert runner is not None and error_of(model, runner) < 1e-5


def test_long_texts_cross_blocks_of_keys() -> None:
    for kind in ("gpt2", "falcon alibi", "llama grouped"):
        model = build(kind)
        runner = lean_of(model)
        assert runner is not None and error_of(model, runner, (140, 3, 128), 19) < 1e-5


def _opt_350():
    return build("opt", do_layer_norm_before=False)


def _narrow():
    return build("opt", word_embed_proj_dim=24)


def _dynamic():
    return build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})


def _activation():
    return build("gpt2", activation_function="quick_gelu")


def _odd():
    return build("falcon grouped", parallel_attn=False)


def _hooked():
    model = build("gpt2")
    model.transformer.h[1].register_forward_hook(lambda module, args, output: output)
    return model


def _own_forward():
    model = build("llama")
    model.model.layers[0].mlp.forward = lambda x: x
    return model


def _lora():
    from peft import LoraConfig, inject_adapter_in_model

    return inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), build("llama"))


def _mixed():
    model = build("gpt2")
    model.transformer.h[0].to(torch.float64)
    return model


def _not_what_it_says():
    model = build("llama")
    model.model.layers[1].self_attn.scaling *= 2
    return model


def _other_family():
    import transformers as hf

    return hf.AutoModelForCausalLM.from_config(
        hf.GPTNeoXConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=50,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_opt_350, "norms after the layers"),
        (_narrow, "projects its embedding"),
        (_dynamic, "rotary positions of type 'dynamic'"),
        (_activation, "activation 'quick_gelu'"),
        (_odd, "not parallel"),
        (_hooked, "module transformer.h.1 is hooked"),
        (_own_forward, "module model.layers.0.mlp is hooked"),
        (_lora, "layer of class"),
        (_mixed, "several dtypes"),
        (_not_what_it_says, "logits differ"),
        (_other_family, "no reader for model type 'gpt_neox'"),
        (lambda: torch.nn.Linear(2, 2), "no reader for model type None"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_model_that_is_not_understood_is_left_to_its_own_forward(make: Any, reason: str) -> None:
    model = make()
    runner, said = lean_or_reason(model)
    assert runner is None
    assert reason in said
    assert lean_of(model) is None


def test_asking_changes_nothing_about_the_model() -> None:
    model = build("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert lean_of(model) is not None
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_recorders_of_transformers_are_no_hooks() -> None:
    model = build("gpt2")
    model(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)
    assert lean_or_reason(model)[1] == ""


def test_a_model_whose_projections_were_put_together_trains_and_is_saved(tmp_path: Any) -> None:
    import transformers as hf

    model = build("llama grouped").requires_grad_(False)
    runner = lean_of(model, through_ops=True)
    assert runner is not None
    assert read(model).blocks[0].qkv.lie_together()
    model.requires_grad_(True)
    train(model)
    assert error_of(model, runner) < 1e-5
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("heads", [1, 4, 6, 12, 71])
def test_alibi_slopes_are_those_of_transformers(heads: int) -> None:
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    assert torch.equal(alibi_slopes(heads, torch.device("cpu")).bfloat16().float(), theirs)
