"""Language-model losses: shifted by one position, masked, in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


def lm_loss(logits: Tensor, labels: Tensor, targets: int | None = None) -> Tensor:
    """Mean negative log-likelihood of the next token over the labelled positions, a float32 scalar in nats.

    logits: (B, T, V) any float dtype. labels: (B, T) int64, `IGNORE` where no loss is wanted; position t is
    predicted from position t - 1, so the first label of a row never counts. targets: divide the sum by this
    number, the labelled positions of a larger batch that these rows are a part of; parts then add up to its mean,
    and a part without any label is 0.
    """
    predicted, wanted = logits[:, :-1].reshape(-1, logits.shape[-1]).float(), labels[:, 1:].reshape(-1)
    if targets is None:
        return F.cross_entropy(predicted, wanted, ignore_index=IGNORE)
    return F.cross_entropy(predicted, wanted, ignore_index=IGNORE, reduction="sum") / targets
