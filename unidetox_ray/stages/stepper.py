"""Training steps on a DeepSpeed engine, and without it where it would shard nothing."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from unidetox_ray.core.batch import Batch
from unidetox_ray.core.loop import LoopSettings
from unidetox_ray.settings import DeepSpeedSection


class DeepSpeedStepper:
    """`core.loop.Stepper` on a DeepSpeed engine, which is passed by where it shards nothing.

    One worker, stage 0, no offload, float32 or pure bfloat16: the engine holds the very model and AdamW of a `PlainStepper`,
    and that one takes the steps. Same losses as without DeepSpeed, bit for bit. On one H200 the engine's own step costs
    1.5 times the plain one at stage 0 and 1.75 times at stage 1 (7B, 8 x 256 tokens, 269 and 312 ms against 177;
    shared/reference/performance.md), for copies and reductions among one. It stays for checkpoints and for saving.
    """

    def __init__(
        self,
        model: Any,
        settings: LoopSettings,
        section: DeepSpeedSection,
        world: int,
        *,
        backend: Any = "inductor",
    ) -> None:
        import torch

        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        import deepspeed.ops

        from unidetox_ray.core.compile_blocks import CompiledBlocks, wanted
        from unidetox_ray.core.forward import TrainingForward
        from unidetox_ray.core.loop import PlainStepper, adamw
        from unidetox_ray.stages.deepspeed_config import deepspeed_config, shards_nothing

        if not on_gpu:
            # Else `initialize` compiles a shared-memory extension with g++ for a minute; gloo does its work.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        model = model.to("cuda" if on_gpu else "cpu")
        self.world, self.micro_batch = world, settings.micro_batch
        self.plain: PlainStepper | None = None
        if shards_nothing(section, settings, world):
            self.plain = PlainStepper(model, settings, backend=backend)
            optimizer, self.forward, self.blocks = self.plain.optimizer, self.plain.forward, self.plain.blocks
        else:
            model = model.to(torch.bfloat16 if settings.precision == "bf16_pure" else torch.float32)
            optimizer = adamw(
                [parameter for parameter in model.parameters() if parameter.requires_grad], settings
            )
            self.forward = TrainingForward(
                model, loss_on_padding=settings.loss_on_padding, pack_to=settings.pack_to
            )
            # Stage 3 fetches each layer's weights in hooks inside the blocks, which a compiler cannot follow.
            compiled = wanted(settings.compile, self.forward.device) and section.stage < 3
            self.blocks = CompiledBlocks(model if compiled else torch.nn.Identity(), backend)
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(section, settings, world),
            dist_init_required=False,
        )
        self.engine.train()
        self.no_norm = section.stage == 0 and settings.precision != "bf16_master"

    def step(self, batch: Batch, lr: float) -> tuple[Any, Any]:
        import torch

        if self.plain is not None:
            # What a checkpoint says of itself; nothing of the training reads it.
            self.engine.global_steps += 1
            self.engine.micro_steps += 1
            self.engine.global_samples += batch.input_ids.shape[0]
            return self.plain.step(batch, lr)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        pieces = batch.pieces(self.micro_batch)
        total = torch.zeros((), device=self.forward.device)
        for number, piece in enumerate(pieces, start=1):
            # DeepSpeed adds the gradients of pieces up until it is told that a step's last one comes.
            self.engine.set_gradient_accumulation_boundary(number == len(pieces))
            loss = self.blocks.run(partial(self.forward.loss, piece, self.world, self.engine))
            self.engine.backward(loss)
            total += loss.detach()
            if number < len(pieces):
                self.engine.step()  # counts the piece and changes no weight
        # Without a sharding or bfloat16 optimiser DeepSpeed clips but keeps no norm.
        own = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in self.engine.module.parameters() if parameter.grad is not None]
        ) if self.no_norm else None  # fmt: skip
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if own is None else own
        return self._averaged(total), torch.as_tensor(float("nan") if norm is None else norm).detach()

    def _averaged(self, loss: Any) -> Any:
        """The mean over workers: of the loss of a share, the mean over all tokens of the batch."""
        import torch.distributed as dist

        if self.world > 1:
            dist.all_reduce(loss)
        return loss / self.world
