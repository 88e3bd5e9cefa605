"""The training loop, and the plain one-process stepper that Ray Train with DeepSpeed is compared with.

The loop owns what must be equal everywhere: which rows form step t, the learning rate at step t, padding and
labels. A stepper owns what differs: precision, optimiser state, sharding. Batches and rates are functions
of the step number alone, so resuming is starting at another number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from unidetox_ray.core.batch import Batch
from unidetox_ray.core.compile_blocks import Compile, CompiledBlocks, wanted
from unidetox_ray.core.flops import Pace
from unidetox_ray.core.forward import TrainingForward
from unidetox_ray.core.loss import IGNORE
from unidetox_ray.core.packs import collate_packs, pack_texts
from unidetox_ray.core.streams import generator

Precision = Literal["fp32", "bf16_master", "bf16_pure"]


@dataclass(frozen=True)
class LoopSettings:
    """What fixes a training run. Defaults are the released recipe's unstated ones (Trainer of 4.39.3)."""

    steps: int
    lr: float
    batch_size: int
    seed: int = 1234
    schedule: Literal["linear", "constant"] = "linear"
    precision: Precision = "fp32"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    loss_on_padding: bool = False
    pad_to: Literal["batch", "longest"] = "batch"
    compile: Compile = "auto"
    pack_to: int = 0
    """Tokens of a row that several texts share; 0 = one text a row."""
    micro_batch: int = 0
    """Rows of a worker that go through the model at once, their gradients summed over a step; 0 = all of them."""


@dataclass
class Log:
    """One entry per step."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the step."""


class Stepper(Protocol):
    """Forward, backward and update on one batch, or on this worker's share of it."""

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """Returns the whole batch's loss and the gradient norm before clipping, two float scalars left on the device."""
        ...


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Rate used at step `step` (0-based): constant, or linear from lr to 0 over `steps` without warm-up."""
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * max(0.0, (settings.steps - step) / settings.steps)


def rows_at(step: int, n_rows: int, settings: LoopSettings) -> list[int]:
    """Which rows form step `step`: each epoch is its own permutation, its last batch may be short."""
    per_epoch = math.ceil(n_rows / settings.batch_size)
    epoch, index = divmod(step, per_epoch)
    order = generator("epoch", settings.seed, epoch).permutation(n_rows)
    return [int(row) for row in order[index * settings.batch_size : (index + 1) * settings.batch_size]]


def collate(
    rows: Sequence[Sequence[int]], *, pad_id: int, length: int | None, loss_on_padding: bool
) -> Batch:
    """Right-padded rows. length: pad to this many positions (None: the longest row here)."""
    width = max(max(len(row) for row in rows), length or 0)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    labels = ids.clone() if loss_on_padding else ids.masked_fill(mask == 0, IGNORE)
    targets = len(rows) * (width - 1) if loss_on_padding else sum(max(len(row) - 1, 0) for row in rows)
    return Batch(ids, mask, labels, sum(map(len, rows)), targets)


def batch_at(step: int, rows: Sequence[Sequence[int]], pad_id: int, settings: LoopSettings) -> Batch:
    length = max(len(row) for row in rows) if settings.pad_to == "longest" else None
    picked = [rows[index] for index in rows_at(step, len(rows), settings)]
    return collate(picked, pad_id=pad_id, length=length, loss_on_padding=settings.loss_on_padding)


def batches(rows: Sequence[Sequence[int]], pad_id: int, settings: LoopSettings) -> Callable[[int], Batch]:
    """step -> its batch. With `pack_to`, `batch_size` counts rows of several texts, packed once for all epochs."""
    if not settings.pack_to:
        return lambda step: batch_at(step, rows, pad_id, settings)
    packs = pack_texts(rows, settings.pack_to)
    return lambda step: collate_packs(
        [packs[index] for index in rows_at(step, len(packs), settings)], pad_id=pad_id
    )


def share(batch: Batch, rank: int, world: int) -> Batch:
    """The rows of a batch that one of `world` workers trains on; `targets` stays that of the whole batch.

    With the loss of `core.forward`, the average of the workers' gradients is the gradient of the whole batch's mean over
    tokens, however many rows and tokens each has. A worker without rows gets the first row without a label, 0 tokens:
    it has to run the model, because the others wait for it, and adds nothing.
    """
    if world == 1:
        return batch
    most = -(-batch.input_ids.shape[0] // world)
    if rank >= batch.input_ids.shape[0]:
        own = batch.without_loss()
    else:
        mask = batch.attention_mask[rank::world]
        positions, segments = (
            None if each is None else each[rank::world] for each in (batch.position_ids, batch.segments)
        )
        own = Batch(
            batch.input_ids[rank::world], mask, batch.labels[rank::world], int(mask.sum()), batch.targets,
            positions, segments,
        )  # fmt: skip
    own.most_rows = most
    return own


def train(
    stepper: Stepper,
    rows: Sequence[Sequence[int]],
    pad_id: int,
    settings: LoopSettings,
    *,
    start: int = 0,
    log: Log | None = None,
    rank: int = 0,
    world: int = 1,
    every: int = 25,
    on_progress: Callable[[int, Log], None] | None = None,
    stops: Sequence[int] = (),
    on_stop: Callable[[int, Log], None] | None = None,
    pace: Pace | None = None,
) -> Log:
    """Run steps `start` … `settings.steps` - 1.

    rows: token-id lists, each with >= 2 ids. Losses stay on the device and are read every `every` steps (that is
    when NonFiniteLoss can be raised), then `on_progress(steps done, log)` is called. After each number of
    completed steps in `stops`, `on_stop` is called with it: checkpoints, evaluations. The log is that of whole batches,
    the same on every rank. pace: gets the time of every step, pauses left out.
    """
    log = log or Log()
    batch_of = batches(rows, pad_id, settings)
    if pace is not None:
        pace.start()
    pending: list[tuple[int, float, int, Tensor, Tensor]] = []

    def flush() -> None:
        for step, rate, tokens, loss, norm in pending:
            value = float(loss)
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"loss is {value} at step {step} (lr {rate:g}); use a lower lr or more precision"
                )
            log.step.append(step)
            log.loss.append(value)
            log.lr.append(rate)
            log.grad_norm.append(float(norm))
            log.tokens.append(tokens)
        pending.clear()

    halts = set(stops)
    for step in range(start, settings.steps):
        batch = batch_of(step)
        rate = learning_rate(step, settings)
        loss, norm = stepper.step(share(batch, rank, world), rate)
        pending.append((step, rate, batch.tokens, loss, norm))
        if pace is not None:
            pace.mark(batch.tokens)
        finished = step + 1
        if finished % every == 0 or finished == settings.steps or finished in halts:
            if pace is not None:
                pace.read()
            flush()
            if on_progress:
                on_progress(finished, log)
            if finished in halts and on_stop:
                on_stop(finished, log)
            if pace is not None:
                pace.start()
    return log


def adamw(parameters: Any, settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW with the recipe's constants; fused where the device has it."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


class PlainStepper:
    """One process, no sharding.

    fp32: everything float32. bf16_master: float32 weights and moments, bfloat16 arithmetic (autocast).
    bf16_pure: weights, gradients and moments bfloat16, as the released code trains.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: LoopSettings,
        *,
        backend: str | Callable[..., object] = "inductor",
    ) -> None:
        self.model = model.to(torch.bfloat16 if settings.precision == "bf16_pure" else torch.float32).train()
        self.settings = settings
        self.device = next(model.parameters()).device
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = adamw(self.trainable, settings)
        self.forward = TrainingForward(
            self.model, loss_on_padding=settings.loss_on_padding, pack_to=settings.pack_to
        )
        self.blocks = CompiledBlocks(
            self.model if wanted(settings.compile, self.device) else torch.nn.Identity(), backend
        )

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.blocks.run(lambda: self._backward(batch), self.optimizer.zero_grad)
        # Left on the device: the scale is computed there too, so that nothing waits for the norm.
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm.detach()

    def _backward(self, batch: Batch) -> Tensor:
        losses = []
        for piece in batch.pieces(self.settings.micro_batch):
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16_master"
            ):
                loss = self.forward.loss(piece)
            loss.backward()
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
