"""DeepSpeed's settings follow from ours. Pure: neither Ray nor DeepSpeed is started."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from unidetox_ray.core.loop import LoopSettings
from unidetox_ray.errors import ConfigError
from unidetox_ray.settings import DeepSpeedSection
from unidetox_ray.stages.deepspeed_config import deepspeed_config, shards_nothing

SETTINGS = LoopSettings(steps=10, lr=1e-4, batch_size=8, max_grad_norm=0.5)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_the_batch_is_the_same_however_many_workers_share_it(world):
    config = deepspeed_config(DeepSpeedSection(), SETTINGS, world)
    per_worker = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    assert per_worker * world == 8
    assert config["gradient_clipping"] == 0.5


@pytest.mark.parametrize("world", [3, 5, 16])
def test_a_batch_that_does_not_divide_is_refused(world):
    with pytest.raises(ConfigError, match=f"batch_size = 8 .*workers_per_cell = {world}; use a multiple"):
        deepspeed_config(DeepSpeedSection(), SETTINGS, world)


@pytest.mark.parametrize("stage", range(4))
def test_only_stage_3_has_to_gather_its_weights(stage):
    zero = deepspeed_config(DeepSpeedSection(stage=stage), SETTINGS, 1)["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)
    assert "offload_optimizer" not in zero


def test_offload_keeps_our_optimiser():
    config = deepspeed_config(DeepSpeedSection(stage=2, offload="optimizer"), SETTINGS, 1)
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert config["zero_force_ds_cpu_optimizer"] is False
    with pytest.raises(ValidationError, match="needs stage 1, 2 or 3"):
        DeepSpeedSection(stage=0, offload="optimizer")


@pytest.mark.parametrize("stage", [0, 2])
def test_precisions(stage):
    def block(precision):
        settings = replace(SETTINGS, precision=precision)
        return deepspeed_config(DeepSpeedSection(stage=stage), settings, 1).get("bf16")

    assert block("fp32") is None
    assert block("bf16_master") == {"enabled": True}
    pure = block("bf16_pure")
    assert pure is None if stage == 0 else pure["bf16_optimizer_states"]


def test_float32_masters_are_never_left_to_the_unsharded_optimiser():
    """It takes a step with zero gradients when it is made; AdamW would count from 2."""
    settings = replace(SETTINGS, precision="bf16_master")
    stages = [
        deepspeed_config(DeepSpeedSection(stage=n), settings, 1)["zero_optimization"]["stage"]
        for n in range(4)
    ]
    assert stages == [1, 1, 2, 3]


def test_pure_bfloat16_states_are_not_offloaded():
    settings = replace(SETTINGS, precision="bf16_pure")
    with pytest.raises(ConfigError, match=r"bf16_pure.*use bf16_master, or offload: none"):
        deepspeed_config(DeepSpeedSection(stage=2, offload="optimizer"), settings, 1)


def test_nothing_of_the_schedule_or_the_rate_is_handed_over():
    """The loop sets the rate of every step; a second scheduler would fight it."""
    config = deepspeed_config(DeepSpeedSection(stage=1), SETTINGS, 2)
    assert not {"scheduler", "optimizer", "fp16"} & set(config)


def test_the_engine_is_passed_by_only_where_it_would_do_nothing():
    pure, master = (replace(SETTINGS, precision=precision) for precision in ("bf16_pure", "bf16_master"))
    assert shards_nothing(DeepSpeedSection(), SETTINGS, 1) and shards_nothing(DeepSpeedSection(), pure, 1)
    assert not shards_nothing(DeepSpeedSection(), master, 1)
    assert not shards_nothing(DeepSpeedSection(), SETTINGS, 2)
    assert not any(shards_nothing(DeepSpeedSection(stage=stage), SETTINGS, 1) for stage in (1, 2, 3))
