"""The memory formulas against the peaks measured on one H200 (shared/reference/performance.md), in GiB."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from unidetox_ray.plan import memory, shapes
from unidetox_ray.plan.counting import Model
from unidetox_ray.settings import DeepSpeedSection, FinetuneSection, ModelRef, ToxicSection

GIB = 2**30
XL, SEVEN = "openai-community/gpt2-xl", "meta-llama/Llama-2-7b-hf"


def model(name: str) -> Model:
    return shapes.family_model(ModelRef(source=name), {XL: "gpt2", SEVEN: "llama"}[name])


#: (model, precision, ZeRO stage, blocks compiled, measured peak): batch 8 x 256 tokens, all weights, AdamW, one worker.
MEASURED = [
    (XL, "bf16_pure", 0, False, 18.0),
    (XL, "bf16_pure", 0, False, 18.4),
    (XL, "bf16_pure", 0, True, 14.9),
    (XL, "bf16_pure", 0, True, 14.5),
    (SEVEN, "bf16_pure", 0, False, 50.8),
    (SEVEN, "bf16_pure", 0, False, 53.0),
    (SEVEN, "bf16_pure", 0, True, 50.3),
    (SEVEN, "bf16_pure", 0, True, 53.8),  # through DeepSpeed's engine, which the run passes by at stage 0
    (SEVEN, "bf16_pure", 1, True, 75.4),
    (SEVEN, "bf16_master", 1, False, 138.1),
]


@pytest.mark.parametrize(("name", "precision", "stage", "compiled", "measured"), MEASURED)
def test_a_training_peaks_where_it_was_measured(name, precision, stage, compiled, measured):
    section = FinetuneSection(precision=precision, deepspeed=DeepSpeedSection(stage=stage))
    found = memory.training(model(name), section, 8, 256, 1, compiled=compiled)
    assert found.peak / GIB == pytest.approx(measured, rel=0.15)


def saved_values(config: PretrainedConfig, layers: int) -> int:
    """bfloat16 values, in bytes, that autograd saves of one forward of 2 x 64 tokens, weights aside."""
    config.num_hidden_layers = layers
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    own = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.full((2, 64), 5), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in own)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=128, n_head=4, n_positions=64, vocab_size=50, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        LlamaConfig(hidden_size=128, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, vocab_size=50),
    ],
    ids=["gpt2", "llama with grouped keys"],
)  # fmt: skip
def test_a_layer_that_is_not_compiled_keeps_what_autograd_saves(config):
    a_layer = (saved_values(config, 4) - saved_values(config, 2)) / 2
    section = FinetuneSection(precision="bf16_pure")
    shape = shapes.of_config(config, "small")
    assert shape.layers == 2
    found = memory.training(shape, section, 2, 64, 1, compiled=False)
    assert found.activations / shape.layers == pytest.approx(a_layer, rel=0.03)


def test_pieces_of_a_batch_need_less_and_add_their_gradients_up():
    xl = model(XL)

    def found(pieces: int) -> memory.Memory:
        section = FinetuneSection(precision="bf16_pure", batch_size=32, micro_batch=32 // pieces)
        return memory.training(xl, section, 32, 256, 1, compiled=True)

    whole, four = found(1), found(4)
    assert four.activations == whole.activations / 4 and four.logits == whole.logits / 4
    assert whole.peak == whole.weights + whole.optimiser + whole.activations + whole.logits
    assert (
        four.peak
        == four.weights + four.gradients + four.optimiser + four.activations + four.logits
        < whole.peak
    )
    # More at once than a worker has is all of it.
    many = FinetuneSection(precision="bf16_pure", micro_batch=100)
    assert memory.training(xl, many, 32, 256, 1, compiled=True) == whole


def test_decoding_by_two_gpt2_xl_peaks_where_it_was_measured():
    pair = [model(XL), model(XL)]
    found = memory.decoding(pair, "bf16", 640, 256, 1, gpu=True)
    assert found.peak / GIB == pytest.approx(100.0, rel=0.15)
    # "2 x 307 KB a token", and "on an A100 80 GB use batches of about 320".
    assert found.cache == 640 * 256 * 2 * 307_200
    free = 79.1 * GIB - memory.CONTEXT - found.weights
    assert memory.rows_of(pair, "bf16", free, 256, 640, 1, gpu=True) == 320


def test_workers_and_stages_divide_what_they_shard():
    seven, size = model(SEVEN), {"rows": 2, "length": 256}

    def peak(stage: int, world: int, **more: object) -> float:
        section = FinetuneSection(precision="bf16_master", deepspeed=DeepSpeedSection(stage=stage, **more))
        return memory.training(seven, section, **size, world=world, compiled=True).peak / GIB

    assert peak(1, 4) < peak(1, 2) < peak(1, 1)
    assert peak(3, 4) < peak(2, 4) <= peak(1, 4)
    offloaded = memory.training(
        seven, FinetuneSection(precision="bf16_master", deepspeed=DeepSpeedSection(stage=1, offload="optimizer")),
        **size, world=1, compiled=True,
    )  # fmt: skip
    assert offloaded.optimiser == 0 and offloaded.host == 18 * seven.parameters


def test_adapters_train_few_numbers_and_keep_the_weights():
    seven = model(SEVEN)
    lora = FinetuneSection(precision="bf16_pure", adapter="lora")
    total, trained = memory.trainable_of(seven, lora)
    # rank 16 on seven matrices of 32 layers, as peft counts them.
    assert trained == 39_976_960 and total == seven.parameters + trained
    whole = memory.training(seven, FinetuneSection(precision="bf16_pure"), 8, 256, 1, compiled=True)
    small = memory.training(seven, lora, 8, 256, 1, compiled=True)
    assert small.peak < 0.6 * whole.peak and small.weights > 0.99 * whole.weights


def test_longer_rows_need_more_and_precision_doubles_what_it_holds():
    xl = model(XL)
    short, long = (
        memory.training(xl, ToxicSection(precision="bf16_pure"), 4, n, 1, compiled=True) for n in (128, 512)
    )
    assert long.activations == 4 * short.activations and long.logits == 4 * short.logits
    full = memory.training(xl, ToxicSection(precision="fp32"), 4, 128, 1, compiled=True)
    assert full.weights == 2 * short.weights and full.optimiser == 2 * short.optimiser


def test_scoring_holds_all_its_models_and_one_batch():
    seven = model(SEVEN)
    alone = memory.scoring([(seven, "bf16")], 65536, 0)
    two = memory.scoring([(seven, "bf16"), (seven, "bf16")], 65536, 65536)
    assert two.weights == 2 * alone.weights == 4 * seven.parameters
    assert two.activations == alone.activations and two.cache == 65536 * 2 * 32 * 4096 * 2
    assert memory.scoring([], 65536, 0).peak == 0
