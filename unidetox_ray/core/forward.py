"""A training batch's loss, with nothing computed that it does not need and no wait for the device.

Logits at labelled positions alone (`core.labelled`), the causal mask ready-made (`core.attending`), blocks compiled
where asked for (`core.compile_blocks`). One class for every stepper, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidetox_ray.core.attending import causal, keeps_apart, takes_masks
from unidetox_ray.core.batch import Batch, moved
from unidetox_ray.core.labelled import labelled_logits, labelled_only, predicted

#: No sliding window is this long: a model that has one makes its own masks.
_ANY_LENGTH = 1 << 30


class TrainingForward:
    """The forward pass of `model`, a Hugging Face causal LM, wrapped by peft or not.

    loss_on_padding: padding is a target and has to be predicted as the released code does, so the model gets the 2-D mask
    and makes its own of it. Otherwise labelled tokens never see padding, which comes behind them, and the model gets
    the causal mask itself where it reads one (tried out here), the 2-D mask where not. pack_to: tokens of rows that several
    texts share, 0 for one text a row; ValueError where the model would mix them.
    """

    def __init__(self, model: nn.Module, *, loss_on_padding: bool = False, pack_to: int = 0) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.masks = not loss_on_padding and (
            keeps_apart(model, pack_to) if pack_to else takes_masks(model, _ANY_LENGTH)
        )
        if pack_to and not self.masks:
            raise ValueError("this model does not keep texts apart that share a row")

    def loss(self, batch: Batch, world: int = 1, call: Callable[..., Any] | None = None) -> Tensor:
        """What a worker whose gradients are averaged over `world` workers goes back from; a float32 scalar.

        Averaging the workers' own means would weigh a token by how few others its worker has. So the sum of this share's
        token losses is divided by the whole batch's `targets` and multiplied by `world`, which the average takes out
        again; for one worker it is the mean over tokens, `core.loss.lm_loss` of the full logits.

        batch: on the CPU. call: what runs the model, itself unless a wrapper does.
        """
        rows, positions = batch.input_ids.shape
        on_host, wanted = predicted(batch.labels)
        where = moved(on_host, self.device)
        given: dict[str, Any] = {"input_ids": moved(batch.input_ids, self.device), "use_cache": False}
        if self.masks:
            order, segments = batch.position_ids, batch.segments
            given["position_ids"] = (
                torch.arange(positions, device=self.device).expand(rows, -1)
                if order is None
                else moved(order, self.device)
            )
            texts = None if segments is None else moved(segments, self.device)
            given["attention_mask"] = causal(positions, texts, self.device)
        else:
            given["attention_mask"] = moved(batch.attention_mask, self.device)
        with labelled_only(self.model, where, rows, positions) as seen:
            output = (call or self.model)(**given)
        logits = labelled_logits(output.logits, where, seen)
        total = F.cross_entropy(logits.float(), moved(wanted, self.device), reduction="sum")
        return total / batch.targets * world
