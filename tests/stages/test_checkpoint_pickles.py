"""A training resumes from every kind of DeepSpeed checkpoint, and a program hidden in one does not run."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unidetox_ray.core.loop import Log, LoopSettings
from unidetox_ray.settings import DeepSpeedSection
from unidetox_ray.stages import checkpoints
from unidetox_ray.stages.stepper import DeepSpeedStepper
from unidetox_ray.stages.training import join_alone


@pytest.fixture(scope="module", autouse=True)
def alone():
    """A process group of one, which other tests of this process share: DeepSpeed remembers the first it saw."""
    join_alone("cpu")


def stepper(precision: str, stage: int) -> DeepSpeedStepper:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    settings = LoopSettings(
        steps=4, lr=1e-3, batch_size=2, seed=1, schedule="linear", precision=precision, compile="off"
    )
    return DeepSpeedStepper(GPT2LMHeadModel(config), settings, DeepSpeedSection(stage=stage), 1)


class Runs:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (str(self.place),))


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("fp32", 1), ("bf16_master", 2), ("fp32", 3)])
def test_every_kind_is_read_as_numbers_alone(precision, stage, tmp_path):
    checkpoints.save(stepper(precision, stage).engine, tmp_path, "key", 2, Log(), 1.0)
    assert checkpoints.restore(stepper(precision, stage).engine, tmp_path, "key", Log())[0] == 2
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_program_in_a_checkpoint_does_not_run(tmp_path):
    engine = stepper("fp32", 0).engine
    checkpoints.save(engine, tmp_path, "key", 2, Log(), 1.0)
    ran = tmp_path / "ran"
    (states,) = (tmp_path / ".checkpoints").rglob("*model_states.pt")
    torch.save({**torch.load(states, weights_only=True), "more": Runs(ran)}, states)
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.restore(stepper("fp32", 0).engine, tmp_path, "key", Log())
    assert not ran.exists()
