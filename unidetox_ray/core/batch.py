"""What one training step reads, and its way to the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unidetox_ray.core.loss import IGNORE


@dataclass
class Batch:
    """input_ids, attention_mask, labels: (B, T) int64. tokens: real tokens in it, padding excluded.

    targets: positions that are predicted (labelled, the first of a row left out) in the whole batch, also where
    this is one worker's share of it. position_ids, segments: (B, T) int64 where rows hold several texts: places
    counted from each text's start, and the text's number in its row (-1 padding). most_rows: of the largest share that a
    worker has of the whole batch; 0 = this is the whole.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    tokens: int
    targets: int
    position_ids: Tensor | None = None
    segments: Tensor | None = None
    most_rows: int = 0

    def rows(self, first: int, last: int) -> Batch:
        """Rows first … last - 1, `targets` still those of the whole batch."""
        cut = slice(first, last)
        mask = self.attention_mask[cut]
        positions, segments = (
            None if each is None else each[cut] for each in (self.position_ids, self.segments)
        )
        return Batch(
            self.input_ids[cut], mask, self.labels[cut], int(mask.sum()), self.targets, positions, segments
        )

    def without_loss(self) -> Batch:
        """The first row without a label, 0 tokens: what a worker runs because the others wait for it."""
        first = self.rows(0, 1)
        first.labels, first.tokens = torch.full_like(first.labels, IGNORE), 0
        return first

    def pieces(self, size: int) -> list[Batch]:
        """This share in pieces of at most `size` rows, 0 = in one; as many pieces on every worker."""
        if not size:
            return [self]
        rows = self.input_ids.shape[0]
        firsts = range(0, max(rows, self.most_rows), size)
        return [self.rows(first, first + size) if first < rows else self.without_loss() for first in firsts]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. To CUDA through pinned memory, so that the host does not wait for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
