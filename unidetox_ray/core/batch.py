"""What one training step reads, and its way to the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """input_ids, attention_mask, labels: (B, T) int64. tokens: real tokens in it, padding excluded.

    targets: positions that are predicted (labelled, the first of a row left out) in the whole batch, also where
    this is one worker's share of it. position_ids, segments: (B, T) int64 where rows hold several texts: places
    counted from each text's start, and the text's number in its row (-1 padding).
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    tokens: int
    targets: int
    position_ids: Tensor | None = None
    segments: Tensor | None = None


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. To CUDA through pinned memory, so that the host does not wait for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
