"""Which model it is: a hash that tells one set of weights from another without reading all of them."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

#: Values of each tensor that are looked at, spread evenly over it.
_VALUES = 64


def model_identity(model: Any) -> str:
    """16 hex digits of the parameters' names, shapes and a sample of their values, tied tensors once.

    Values are compared as bfloat16, so that a model has the same identity whether it was opened in float32 or bfloat16.
    A fine-tuned copy differs in nearly every tensor; one whose few changes all miss the sample has the original's.
    """
    described, sampled = [], []
    for name, tensor in model.named_parameters():
        described.append(f"{name}:{tuple(tensor.shape)}")
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, max(len(flat) - 1, 0), min(_VALUES, len(flat)), device=flat.device)
        sampled.append(flat[places.long()].to(torch.bfloat16))
    values = torch.cat(sampled).view(torch.int16).cpu().numpy().tobytes()
    return hashlib.sha256("\n".join(described).encode() + values).hexdigest()[:16]
