"""Models of random numbers, of any architecture."""

from __future__ import annotations

from typing import Any

import torch


def random_model(config: Any, seed: int = 0) -> Any:
    """The causal language model of the config, float32, in evaluation mode; all parameters random, so that no bias or norm is
    trivial."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()
