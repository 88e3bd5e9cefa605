"""The steer's hook against plain arithmetic, and its training: what gets gradients, what padding and labels do."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from small_models import V, model_of
from torch import nn

from unidetox_ray.core.identity import model_identity
from unidetox_ray.core.steer import Steer, SteerHook
from unidetox_ray.core.steer_training import SteerRecipe, train_steer
from unidetox_ray.errors import ModelError, StageError

CPU = torch.device("cpu")
RECIPE = SteerRecipe(epsilon=0.05, rank=4, dummy=True, steps=6, lr=1e-2, batch_size=3, penalty=0.0, seed=3)
ROWS = [[5, 17, 80, 3, 44], [9, 61], [2, 2, 30], [70, 4, 4, 8, 8, 1], [33, 90, 12]]
LABELS = [1, -1, 1, -1, 1]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["thin", "wide", "full", "two thin", "mixed"])
def parts(request):
    """(steer, factor) pairs; 4 + 4 columns of 32 stay factors, the others become one full matrix."""
    thin, wide = (Steer(drawn(32, rank, seed=rank), drawn(32, rank, seed=rank + 1)) for rank in (4, 20))
    full = Steer(drawn(32, 32, seed=9))
    return {
        "thin": [(thin, 0.3)], "wide": [(wide, -0.1)], "full": [(full, 0.2)],
        "two thin": [(thin, 0.3), (thin, 0.7)], "mixed": [(thin, 0.3), (full, 0.1)],
    }[request.param]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_the_hook_adds_the_steers(parts, rows):
    hidden = drawn(rows, 32, seed=5)
    expected = hidden + sum(factor * steer.times(hidden) for steer, factor in parts)
    before = hidden.clone()
    torch.testing.assert_close(SteerHook(parts, CPU)(hidden), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(hidden, before)


def test_a_rows_bits_do_not_depend_on_the_others(parts):
    hook, hidden = SteerHook(parts, CPU), drawn(37, 32, seed=6)
    with torch.inference_mode():
        whole = hook(hidden)
        for start, end in ((0, 1), (3, 20), (5, 37)):
            assert torch.equal(hook(hidden[start:end]), whole[start:end])


def test_the_arithmetic_is_float32_whatever_the_model_is(parts):
    hook, hidden = SteerHook(parts, CPU), drawn(20, 32, seed=7).to(torch.bfloat16)
    found = hook(hidden)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, hook(hidden.float()).to(torch.bfloat16))
    assert hook(hidden.double()).dtype == torch.float64


def test_a_steers_norm_and_size():
    steer = Steer(drawn(32, 4), drawn(32, 4, seed=1))
    assert steer.norm() == pytest.approx(float((steer.first @ steer.second.T).norm()), rel=1e-5)
    assert (steer.parameters(), steer.rank, steer.hidden) == (256, 4, 32)
    full = Steer(drawn(32, 32))
    assert (full.parameters(), full.rank) == (1024, None) and torch.equal(full.dense(), full.first)


def trained(model, rows=ROWS, labels=LABELS, pad=0, **changes):
    return train_steer(model, rows, labels, pad, SteerRecipe(**{**vars(RECIPE), **changes}))


def tensors(result):
    return [*result.steer.tensors(), *(result.dummy.tensors() if result.dummy else [])]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


@pytest.fixture(scope="module")
def gpt2():
    return model_of("gpt2").eval()


def test_the_model_runs_once_a_step_and_without_gradients(gpt2):
    model = copy.deepcopy(gpt2).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    trained(model, steps=1)  # the first call also finds out which masks the model takes
    body = model.base_model.register_forward_hook(
        lambda _module, _given, output: seen.append(output.last_hidden_state)
    )
    heads = []
    head = model.get_output_embeddings().register_forward_hook(
        lambda _m, given, out: heads.append((given[0], out))
    )
    trained(model, steps=4)
    body.remove()
    head.remove()
    probes = len(seen) - 4
    assert probes <= 4 and all(state.grad_fn is None for state in seen)
    for given, out in heads[probes:]:
        assert given.grad_fn is not None and out.grad_fn is not None
        assert given.shape[:1] == (1,) and given.shape[1] < 3 * 6  # positions with a label alone
    assert model.training and all(value.requires_grad and value.grad is None for value in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_padding_carries_no_loss_and_the_seed_decides_all(gpt2):
    first = trained(gpt2)
    assert same(first, trained(gpt2, pad=55)) and first.loss == trained(gpt2, pad=55).loss
    assert not same(first, trained(gpt2, seed=4))
    assert first.tokens == sum(map(len, ROWS)) * 3  # 6 steps of 3 and 2 rows: three epochs
    assert len(first.loss) == 6 and all(map(math.isfinite, first.loss))


def test_the_loss_is_the_mean_over_tokens_of_the_steered_model(gpt2):
    """One step from a full matrix, which starts at zero: the base model's own loss, and one step of Adam of known size."""
    result = trained(gpt2, rank=None, batch_size=5, steps=1)
    nll, count = 0.0, 0
    for row in ROWS:
        logits = gpt2(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        nll -= logits.gather(-1, torch.tensor(row[1:])[:, None]).sum().item()
        count += len(row) - 1
    assert result.loss == [pytest.approx(nll / count, rel=1e-5)]
    moved = result.steer.first.abs()
    assert float(moved.max()) == pytest.approx(RECIPE.lr, rel=1e-2)


def test_swapped_labels_turn_the_steer_round_and_leave_the_dummy(gpt2):
    """From a full matrix, which starts at zero: the gradient's sign is the labels'."""
    first, second = (
        trained(gpt2, labels=labels, rank=None, steps=1) for labels in (LABELS, [-y for y in LABELS])
    )
    assert torch.equal(first.steer.first, -second.steer.first) and bool(first.steer.first.any())
    assert torch.equal(first.dummy.first, second.dummy.first)
    assert trained(gpt2, dummy=False).dummy is None


def test_the_penalty_pulls_towards_zero(gpt2):
    free, held = (trained(gpt2, steps=40, penalty=penalty).steer.norm() for penalty in (0.0, 10.0))
    assert held < 0.5 * free


def test_what_cannot_be_trained_is_said(gpt2):
    with pytest.raises(StageError, match=r"^the loss is nan at step \d+ \(lr 1e\+25\); use a lower lr"):
        trained(gpt2, lr=1e25)
    headless = copy.deepcopy(gpt2)
    headless.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="names no output layer"):
        trained(headless)

    class Flat(nn.Module):
        """A head that the model calls with flattened states."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = copy.deepcopy(gpt2), nn.Linear(32, V, bias=False)
            self.config = self.inner.config

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
            states = self.inner.transformer(input_ids=input_ids).last_hidden_state
            output = type("Output", (), {})()
            output.logits = self.head(states.reshape(-1, 32)).reshape(*input_ids.shape, V)
            return output

    with pytest.raises(ModelError, match="not with all positions of a batch; it cannot be steered"):
        trained(Flat())
    assert torch.is_grad_enabled()


def test_a_model_is_known_by_its_weights(gpt2):
    other = copy.deepcopy(gpt2)
    assert model_identity(other) == model_identity(gpt2) == model_identity(other.to(torch.bfloat16))
    other = copy.deepcopy(gpt2)
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight.mul_(1.02)
    assert model_identity(other) != model_identity(gpt2)
