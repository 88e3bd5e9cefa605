"""DeepSpeed's settings as one pure function of ours, so that no number is written twice. Needs no DeepSpeed."""

from __future__ import annotations

from typing import Any

from unidetox_ray.core.loop import LoopSettings
from unidetox_ray.errors import ConfigError
from unidetox_ray.settings import DeepSpeedSection


def shards_nothing(section: DeepSpeedSection, settings: LoopSettings, world: int) -> bool:
    """Whether DeepSpeed's engine would do nothing but cost: one worker, no stage, no offload, no master weights."""
    return (
        world == 1
        and section.stage == 0
        and section.offload == "none"
        and settings.precision in ("fp32", "bf16_pure")
    )


def deepspeed_config(section: DeepSpeedSection, settings: LoopSettings, world: int) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`.

    bf16_pure needs a sharding stage when DeepSpeed keeps the states; at stage 0 the model itself is bfloat16 and
    the client's AdamW keeps bfloat16 moments, so no precision block is set (DeepSpeed refuses one there).
    bf16_master at stage 0 is run as stage 1: DeepSpeed's unsharded optimiser takes a step with zero gradients when it is
    made, so that AdamW would count from 2 and its first update would be a quarter too small.
    ConfigError: a batch that does not divide over the workers, bf16_pure with the optimiser in CPU memory.
    """
    if settings.batch_size % world:
        raise ConfigError(
            f"batch_size = {settings.batch_size} does not divide over cluster.workers_per_cell = {world}; use a multiple"
        )
    if settings.precision == "bf16_pure" and section.offload == "optimizer":
        # DeepSpeed offloads such states to its own CPU Adam alone, which is compiled at first use.
        raise ConfigError(
            "precision = 'bf16_pure' with deepspeed.offload = 'optimizer' is not possible; use bf16_master, or offload: none"
        )
    stage = 1 if settings.precision == "bf16_master" and section.stage == 0 else section.stage
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.batch_size // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": section.overlap_comm,
            "stage3_gather_16bit_weights_on_model_save": section.stage == 3,
        },
    }
    if section.offload == "optimizer":
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        # The client's torch AdamW is kept: DeepSpeed's own CPU Adam is compiled at first use.
        config["zero_force_ds_cpu_optimizer"] = False
    if settings.precision == "bf16_master":
        config["bf16"] = {"enabled": True}
    elif settings.precision == "bf16_pure" and section.stage > 0:
        config["bf16"] = {
            "enabled": True,
            "bf16_master_weights_and_grads": True,
            "bf16_optimizer_states": True,
        }
    return config
