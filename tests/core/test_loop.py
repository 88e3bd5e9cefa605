"""Batches, rates, labels and losses of the training loop."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unidetox_ray.core.forward import TrainingForward
from unidetox_ray.core.loop import (
    IGNORE,
    Log,
    LoopSettings,
    NonFiniteLoss,
    PlainStepper,
    batch_at,
    collate,
    learning_rate,
    rows_at,
    share,
    train,
)  # fmt: skip
from unidetox_ray.core.loss import lm_loss

ROWS = [[1, 5, 9, 3], [1, 7, 2], [1, 4, 4, 4, 8, 2], [1, 6], [1, 9, 9, 2], [1, 3, 5, 7, 2]]


def tiny(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16,
            n_embd=32,
            n_layer=1,
            n_head=2,
            n_positions=16,
            bos_token_id=1,
            eos_token_id=2,
            **rates,
        )
    )


def test_every_epoch_sees_every_row_once_in_another_order():
    settings = LoopSettings(steps=10, lr=1e-3, batch_size=4)
    first = rows_at(0, 6, settings) + rows_at(1, 6, settings)
    second = rows_at(2, 6, settings) + rows_at(3, 6, settings)
    assert sorted(first) == sorted(second) == list(range(6)) and first != second
    assert (
        len(rows_at(1, 6, settings)) == 2
    )  # the last batch of an epoch is short, as in the released Trainer


def test_schedules():
    linear = LoopSettings(steps=4, lr=0.4, batch_size=1)
    assert [round(learning_rate(step, linear), 9) for step in range(5)] == [0.4, 0.3, 0.2, 0.1, 0.0]
    constant = LoopSettings(steps=4, lr=0.4, batch_size=1, schedule="constant")
    assert {learning_rate(step, constant) for step in range(4)} == {0.4}


def test_padding_is_no_target_unless_asked_for():
    """Defect 9."""
    masked = collate(ROWS[:2], pad_id=0, length=None, loss_on_padding=False)
    assert masked.labels.tolist() == [[1, 5, 9, 3], [1, 7, 2, IGNORE]] and masked.tokens == 7
    released = collate(ROWS[:2], pad_id=0, length=None, loss_on_padding=True)
    assert released.labels.tolist() == [[1, 5, 9, 3], [1, 7, 2, 0]]
    model = tiny().eval()
    logits = model(input_ids=masked.input_ids, attention_mask=masked.attention_mask).logits.detach()
    assert abs(float(lm_loss(logits, masked.labels)) - float(lm_loss(logits, released.labels))) > 1e-4


def test_padding_to_the_longest_of_the_set():
    """Defect 10."""
    settings = LoopSettings(steps=1, lr=1.0, batch_size=2, pad_to="longest")
    assert all(batch_at(step, ROWS, 0, settings).input_ids.shape[1] == 6 for step in range(3))
    dynamic = LoopSettings(steps=1, lr=1.0, batch_size=2)
    widths = {batch_at(step, ROWS, 0, dynamic).input_ids.shape[1] for step in range(3)}
    assert min(widths) < 6


def test_loss_is_the_mean_negative_log_likelihood_of_the_next_token():
    logits = torch.randn(1, 3, 5)
    labels = torch.tensor([[4, 2, IGNORE]])
    assert math.isclose(
        float(lm_loss(logits, labels)), -float(torch.log_softmax(logits[0, 0], -1)[2]), rel_tol=1e-6
    )


def test_padding_to_the_batch_or_the_longest_gives_the_same_losses():
    losses = [
        train(PlainStepper(tiny(), s), ROWS, 0, s).loss
        for s in (LoopSettings(steps=6, lr=1e-2, batch_size=2, pad_to=how) for how in ("batch", "longest"))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_training_lowers_the_loss_and_pins_its_first_values():
    settings = LoopSettings(steps=40, lr=1e-2, batch_size=3)
    log = train(PlainStepper(tiny(), settings), ROWS, 0, settings)
    assert log.step == list(range(40)) and log.loss[-1] < 0.6 * log.loss[0]
    assert log.loss[0] == pytest.approx(math.log(16), abs=0.35)
    again = train(PlainStepper(tiny(), settings), ROWS, 0, settings)
    assert again.loss == log.loss and again.grad_norm == log.grad_norm


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resumed_equals_uninterrupted(dropout):
    settings = LoopSettings(steps=12, lr=1e-2, batch_size=2)
    torch.manual_seed(1)
    whole = PlainStepper(tiny(dropout), settings)
    kept = {}
    full = train(
        whole, ROWS, 0, settings, stops=[5], on_stop=lambda done, log: kept.update(_frozen(whole, log))
    )
    torch.manual_seed(99)  # a new process: nothing but the saved state survives
    second = PlainStepper(tiny(dropout), settings)
    second.load(kept["state"])
    resumed = train(second, ROWS, 0, settings, start=5, log=kept["log"])
    assert resumed.loss == full.loss
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def _frozen(stepper: PlainStepper, log: Log) -> dict:
    import copy

    return {"state": copy.deepcopy(stepper.state()), "log": copy.deepcopy(log)}


def test_pure_bf16_loses_small_updates_that_fp32_master_keeps():
    """Defect 11: the published rate belongs to a precision."""
    moved = {}
    for precision in ("fp32", "bf16_master", "bf16_pure"):
        settings = LoopSettings(steps=1, lr=1e-5, batch_size=3, precision=precision)
        model = tiny()
        before = model.transformer.wte.weight.detach().clone()
        train(PlainStepper(model, settings), ROWS, 0, settings)
        after = model.transformer.wte.weight.detach()
        reference = before.bfloat16() if precision == "bf16_pure" else before
        used = sorted({token for row in ROWS for token in row})
        moved[precision] = float((after[used] != reference[used]).float().mean())
    assert moved["fp32"] > 0.95 and moved["bf16_master"] > 0.95
    assert moved["bf16_pure"] < 0.6


def test_a_loss_that_is_not_finite_names_its_step():
    settings = LoopSettings(steps=30, lr=1e-2, batch_size=2)
    model = tiny()
    with torch.no_grad():
        model.transformer.wte.weight[3] = float("nan")
    with pytest.raises(NonFiniteLoss, match="step 0"):
        train(PlainStepper(model, settings), ROWS, 0, settings)


def test_workers_share_a_batch_without_overlap():
    batch = collate(ROWS[:4], pad_id=0, length=None, loss_on_padding=False)
    parts = [share(batch, rank, 2) for rank in range(2)]
    rows = [row for part in parts for row in part.input_ids.tolist()]
    assert sorted(rows) == sorted(batch.input_ids.tolist())
    assert sum(part.tokens for part in parts) == batch.tokens
    assert {part.targets for part in parts} == {batch.targets} == {3 + 2 + 5 + 1}


def _averaged(batch, world: int, loss_on_padding: bool):
    """(loss, gradients) of `world` workers: each its own backward pass, gradients averaged by hand."""
    losses, gradients = [], []
    for rank in range(world):
        model, part = tiny(), share(batch, rank, world)
        loss = TrainingForward(model, loss_on_padding=loss_on_padding).loss(part, world)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append([parameter.grad for parameter in model.parameters()])
    return sum(losses) / world, [sum(each) / world for each in zip(*gradients, strict=True)]


@pytest.mark.parametrize("loss_on_padding", [False, True])
@pytest.mark.parametrize(("rows", "world"), [(6, 2), (3, 2), (1, 2), (2, 3), (1, 4)])
def test_several_workers_make_the_update_of_one(rows, world, loss_on_padding):
    """Rows differ in length, so workers hold different numbers of tokens; the short batch of an epoch leaves some without."""
    batch = collate(ROWS[:rows], pad_id=0, length=None, loss_on_padding=loss_on_padding)
    model = tiny()
    loss = lm_loss(model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits, batch.labels)
    loss.backward()
    found, gradients = _averaged(batch, world, loss_on_padding)
    assert found == pytest.approx(float(loss.detach()), abs=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=0, atol=1e-6)


def test_a_worker_without_rows_runs_the_model_and_adds_nothing():
    batch = collate(ROWS[2:3], pad_id=0, length=8, loss_on_padding=False)
    idle = share(batch, 1, 2)
    assert idle.tokens == 0 and idle.targets == batch.targets == 5 and idle.input_ids.shape == (1, 8)
    model = tiny()
    loss = TrainingForward(model).loss(idle, 2)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_every_worker_keeps_the_log_of_whole_batches():
    settings = LoopSettings(steps=4, lr=1e-2, batch_size=4)
    counts = [
        train(PlainStepper(tiny(), settings), ROWS, 0, settings, rank=r, world=2).tokens for r in (0, 1)
    ]
    assert counts[0] == counts[1] == train(PlainStepper(tiny(), settings), ROWS, 0, settings).tokens
    assert sum(counts[0]) == 2 * sum(map(len, ROWS))
