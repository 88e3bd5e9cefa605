"""Training linear steers of a frozen model on texts of two labels (Han et al., ACL 2024; shared notes B.2).

The model runs without gradients up to its head; from the steered hidden state on, gradients are kept, and they go back
through the head to the steers alone. A step so costs one forward pass and the head's backward.

Letters: B rows, T positions, H hidden size, N labelled positions, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidetox_ray.core.forward import TrainingForward
from unidetox_ray.core.labelled import head_of, predicted
from unidetox_ray.core.loop import LoopSettings, collate, rows_at
from unidetox_ray.core.steer import Steer
from unidetox_ray.errors import ModelError, StageError

#: Standard deviation of the factors at the start (released code; shared notes B.2).
_START = 0.01
#: Steps between two readings of the loss.
_READ_EVERY = 50


@dataclass(frozen=True)
class SteerRecipe:
    """rank: None = a full matrix, which starts at 0. dummy: a second steer whose value is 1 for every text.

    penalty: times the squared norm of all trained numbers, added to the loss. batch_size: texts.
    """

    epsilon: float
    rank: int | None
    dummy: bool
    steps: int
    lr: float
    batch_size: int
    penalty: float
    seed: int


@dataclass(frozen=True)
class Trained:
    """loss: of every step, mean negative log-likelihood per token in nats, the penalty included."""

    steer: Steer
    dummy: Steer | None
    loss: list[float]
    tokens: int

    @property
    def parameters(self) -> int:
        return self.steer.parameters() + (self.dummy.parameters() if self.dummy else 0)


def train_steer(
    model: Any, rows: Sequence[Sequence[int]], labels: Sequence[int], pad_id: int, recipe: SteerRecipe
) -> Trained:
    """Minimises, by Adam, the mean of -log P(token) under the model steered by epsilon (label W + W_dummy).

    model: a causal LM; neither its weights nor its mode are changed. rows: token ids, each >= 2. labels: +1 or -1 per row,
    +1 for what the steer is to make likelier. Padding carries no loss. Everything random comes from `recipe.seed`; the steers
    are float32 whatever the model is. ModelError: a model whose head cannot be reached. StageError: a loss or a trained
    value that is not finite, with the step.
    """
    head = head_of(model)
    if head is None:
        raise ModelError("the model names no output layer, so there is no hidden state before it to steer")
    device = next(model.parameters()).device
    width: Any = head.weight
    steers = _start(int(width.shape[1]), recipe, device)
    trained = [tensor for steer in steers for tensor in steer.tensors()]
    optimizer = torch.optim.Adam(trained, lr=recipe.lr)
    order = LoopSettings(
        steps=recipe.steps, lr=recipe.lr, batch_size=recipe.batch_size, seed=recipe.seed, schedule="constant"
    )
    losses: list[float] = []
    waiting: list[Tensor] = []
    tokens = 0
    training = model.training
    model.eval()
    try:
        forward = TrainingForward(model)
        for step in range(recipe.steps):
            picked = rows_at(step, len(rows), order)
            batch = collate(
                [rows[index] for index in picked], pad_id=pad_id, length=None, loss_on_padding=False
            )
            signs = torch.tensor([float(labels[index]) for index in picked])
            where, _ = predicted(batch.labels)
            of_position = signs[where // batch.input_ids.shape[1]].to(device)
            call = _steered(model, head, steers, of_position, recipe.epsilon)
            loss = forward.loss(batch, call=call)
            if recipe.penalty:
                loss = loss + recipe.penalty * torch.stack([value.square().sum() for value in trained]).sum()
            for tensor, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                tensor.grad = gradient
            optimizer.step()
            waiting.append(loss.detach())
            tokens += batch.tokens
            if len(waiting) == _READ_EVERY or step + 1 == recipe.steps:
                losses += _read(waiting, len(losses), recipe)
                waiting = []
    finally:
        model.train(training)
    for tensor in trained:
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(f"a trained value is not finite after {recipe.steps} steps; use a lower lr")
    steer, *others = [Steer(*(tensor.detach().cpu() for tensor in each.tensors())) for each in steers]
    return Trained(steer, others[0] if others else None, losses, tokens)


def _start(hidden: int, recipe: SteerRecipe, device: torch.device) -> list[Steer]:
    """The steers before training: factors drawn on the CPU, so that every device starts alike."""
    draw = torch.Generator().manual_seed(recipe.seed)
    steers = []
    for _ in range(1 + recipe.dummy):
        if recipe.rank is None:
            tensors = [torch.zeros(hidden, hidden)]
        else:
            tensors = [_START * torch.randn(hidden, recipe.rank, generator=draw) for _ in range(2)]
        steers.append(Steer(*(tensor.to(device).requires_grad_() for tensor in tensors)))
    return steers


def _steered(
    model: Any, head: torch.nn.Module, steers: Sequence[Steer], signs: Tensor, epsilon: float
) -> Callable[..., Any]:
    """Runs the model without gradients until its head has been given the steered hidden states.

    steers: the one that carries the label, and the dummy. signs: (N,) float32, the labels of the positions that the head is
    asked for (`core.labelled`).
    """

    def before(_head: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        states = given[0]
        if states.shape[:-1] != (1, len(signs)):
            raise ModelError(
                f"the model's head is called with {tuple(states.shape)} hidden states, not with all positions of a batch; "
                "it cannot be steered"
            )
        # Ended by the block that runs the model: all behind the hidden state keeps its gradients.
        torch.set_grad_enabled(True)
        hidden = states[0].float()
        moved = hidden + epsilon * signs[:, None] * steers[0].times(hidden)
        for dummy in steers[1:]:
            moved = moved + epsilon * dummy.times(hidden)
        return (moved.to(states.dtype)[None], *given[1:])

    def call(**given: Any) -> Any:
        handle = head.register_forward_pre_hook(before)
        try:
            with torch.no_grad():
                return model(**given)
        finally:
            handle.remove()

    return call


def _read(waiting: Sequence[Tensor], first: int, recipe: SteerRecipe) -> list[float]:
    values: list[float] = torch.stack(list(waiting)).tolist()
    for number, value in enumerate(values):
        if not math.isfinite(value):
            raise StageError(
                f"the loss is {value} at step {first + number} (lr {recipe.lr:g}); use a lower lr"
            )
    return values
