"""Operations of a step, the device's peak, and what is made of measured times."""

from __future__ import annotations

import time

import peft
import pytest
import torch
from small_models import model_of
from torch.utils.flop_counter import FlopCounterMode

from unidetox_ray.core.flops import Pace, Parameters, parameters_of, peak_flops, speed_of, training_flops
from unidetox_ray.core.loop import LoopSettings, PlainStepper, train

CPU = torch.device("cpu")


def test_six_operations_a_weight_and_token_four_of_them_for_a_frozen_one():
    assert training_flops(Parameters(10, 10), 3) == 6 * 10 * 3
    assert training_flops(Parameters(10, 0), 3) == 4 * 10 * 3
    assert training_flops(Parameters(10, 2), 1) == 44


@pytest.mark.parametrize("frozen", [False, True])
def test_the_count_is_what_torch_counts_in_the_matrices(frozen):
    """A stack of square matrices behind a trained one, which alone carries no gradient on: 1 of 40 products."""
    layers = [torch.nn.Linear(64, 64, bias=False) for _ in range(20)]
    for layer in layers[1:]:
        layer.weight.requires_grad_(not frozen)
    model = torch.nn.Sequential(*layers)
    with FlopCounterMode(display=False) as counted:
        model(torch.randn(7, 64)).sum().backward()
    ours = training_flops(parameters_of(model), 7)
    assert ours == pytest.approx(counted.get_total_flops(), rel=0.03)


def test_shared_and_frozen_weights():
    model = model_of("gpt2")  # its head is its embedding
    counts = parameters_of(model)
    assert counts.total == counts.trainable == sum(p.numel() for p in model.parameters())
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    )
    adapted = parameters_of(wrapped)
    assert adapted.trainable == adapted.total - counts.total > 0


def test_the_peak_is_measured_once():
    first = peak_flops(CPU, torch.float32)
    started = time.perf_counter()
    assert peak_flops(CPU, torch.float32) == first > 1e9
    assert time.perf_counter() - started < 0.01


def test_speed_is_the_median_behind_the_warm_up():
    seconds = [5.0, 1.0, *[0.1] * 9, 0.3]
    speed = speed_of(seconds, [10] * 12, Parameters(100, 100), peak=1e6)
    assert speed.step_ms == pytest.approx(100)
    assert speed.warmup_seconds == pytest.approx(5.8)  # of 6.3 s, five steps are 0.5 s
    assert speed.tokens_per_second == pytest.approx(70 / 0.9)
    assert speed.mfu == pytest.approx(6 * 100 * 70 / 0.9 / 1e6)
    assert speed_of(seconds, [10] * 12, Parameters(100, 100), 1e6, devices=2).mfu == pytest.approx(
        speed.mfu / 2
    )
    assert speed_of([], [], Parameters(1, 1), 1.0) is None
    assert speed_of([0.5], [4], Parameters(1, 1), 1.0).tokens_per_second == 8


def test_the_loop_times_every_step_and_no_pause():
    settings = LoopSettings(steps=7, lr=1e-3, batch_size=2)
    pace = Pace(CPU)
    rows = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    log = train(
        PlainStepper(model_of("gpt2"), settings), rows, 0, settings,
        stops=[3, 5], on_stop=lambda done, log: time.sleep(1.0), every=2, pace=pace,
    )  # fmt: skip
    assert len(pace.seconds) == 7 and pace.tokens == log.tokens
    assert all(0 < seconds < 0.9 for seconds in pace.seconds)
