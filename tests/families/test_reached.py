"""Which layers a text reaches: towers, absent encoders, layers without a gradient, weights that others share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unidetox_ray.families.reached import reached


class Part(nn.Module):
    """A language model of 8 tokens with a layer of each fate."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)
        self.used, self.unused, self.chooser = (nn.Linear(4, 4) for _ in range(3))
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(4, 4) for _ in range(experts)) for _ in range(2))
        self.head = nn.Linear(4, 8)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids, **_):
        hidden = self.used(self.table(input_ids))
        with torch.no_grad():
            best = self.chooser(hidden).argmax(-1, keepdim=True)
        hidden = hidden + hidden.gather(-1, best)
        for experts in self.layers:
            hidden = hidden + experts[0](hidden)  # the router never chooses another
        return type("Output", (), {"logits": self.head(hidden)})


NAMES = ["used", "unused", "chooser", "layers.0.0", "layers.0.2", "layers.1.0", "layers.1.1"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_what_the_logits_have_a_gradient_through(device):
    model = Part().to(device).train()
    state = torch.random.get_rng_state()
    assert reached(model, NAMES) == ["used", "layers.0.0", "layers.0.2", "layers.1.0", "layers.1.1"]
    assert model.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.used._forward_hooks


def test_nothing_asked_nothing_reached_and_what_cannot_be_tried():
    model = Part()
    assert reached(model, []) == [] and reached(model, ["unused", "chooser"]) == []
    model.head = nn.Linear(5, 8)  # fits nothing
    assert reached(model, NAMES) == NAMES
    assert not model.unused._forward_hooks
