"""Whether a runner computes what the model's own forward does, tried on a few random ids before it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unidetox_ray.core.runner import Runner

#: Where a batch of the trial goes: rows 0 and 1 are read, then copied to these three.
_COPIED_FROM = (0, 1, 0)
#: Of the three rows, the two that stay for the last step.
_KEPT = (0, 2)


def disagreement(model: Any, runner: Runner, *, most_positions: int | None = None) -> float:
    """Largest difference of the logits, relative to the largest logit; nan where one is not a number.

    Two prompts of unequal length are read, copied to three rows, stepped twice, then one row is dropped and the others
    stepped once more. most_positions: as many as the model knows, at least 5. The model's modes are as before.
    """
    limit = most_positions or 64
    lengths = [min(9, limit - 3), min(4, limit - 3)]
    steps = 3
    draw = torch.Generator().manual_seed(0)
    known = int(model.get_input_embeddings().weight.shape[0])  # a head may be wider: a map, not a vocabulary
    ids = torch.randint(known, (2, max(lengths) + steps), generator=draw).to(runner.device)
    worst = torch.zeros((), dtype=torch.float64)
    with evaluating(model), torch.inference_mode():
        wanted = []
        for row, length in enumerate(lengths):
            logits: Tensor = model(input_ids=ids[row : row + 1, : length + steps], use_cache=False).logits[0]
            wanted.append(logits[length - 1 :].double())
        rows = list(_COPIED_FROM)
        runner.open(len(rows), max(lengths) + steps)
        first = torch.arange(2, device=runner.device)
        measured = torch.tensor(lengths, device=runner.device)
        got = [(list(range(2)), runner.prefill(ids[:, : max(lengths)], measured, first).double())]
        source = torch.tensor(rows, device=runner.device)
        runner.repeat(source, torch.arange(len(rows), device=runner.device))
        for step in range(steps):
            if step == steps - 1 and runner.shrinks:
                runner.keep(torch.tensor(_KEPT, device=runner.device))
                rows = [rows[index] for index in _KEPT]
            tokens = torch.stack([ids[row, lengths[row] + step] for row in rows])
            got.append((rows, runner.step(tokens).double()))
        for place, (held, logits) in enumerate(got):
            for index, row in enumerate(held):
                right = wanted[row][place]
                gap = (logits[index] - right).abs().max() / right.abs().max().clamp(min=1e-6)
                worst = torch.maximum(worst, gap.cpu())  # keeps a nan
    return float(worst)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode; every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
