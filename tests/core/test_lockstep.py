"""Several models at once: what they say does not depend on threads, and one that fails harms no other."""

from __future__ import annotations

import threading

import pytest
import torch
from decode_models import lean

from unidetox_ray.core.lockstep import LockStep
from unidetox_ray.families.generic import GenericRunner


@pytest.mark.parametrize("threads", [1, 2])
def test_lockstep_on_threads_gives_what_turns_give(pair, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runners = [lean(each) for each in pair]
        ids, lengths = torch.tensor([[4, 5, 6], [9, 1, 0]]), torch.tensor([3, 2])
        outcomes = {}
        for own in (True, False):
            with LockStep(runners, threads=own) as models:
                models.open(2, 8)
                logits = [models.prefill(ids, lengths, torch.arange(2))]
                logits += [models.step(torch.tensor([token, token + 1])) for token in (3, 17, 50)]
                outcomes[own] = torch.stack([torch.stack([each.clone() for each in both]) for both in logits])
                if own and threads == 2:  # both at once: neither returns before the other has come
                    meeting = threading.Barrier(2)
                    models.each(lambda _, meeting=meeting: meeting.wait(timeout=30))
                else:
                    here = threading.current_thread()
                    assert models.each(lambda _: threading.current_thread()) == [here, here]
            assert torch.get_num_threads() == threads
        assert torch.equal(outcomes[True], outcomes[False])
    finally:
        torch.set_num_threads(before)


def test_lockstep_passes_errors_on_and_stays_usable(pair):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with LockStep([GenericRunner(each) for each in pair]) as models:
            models.open(1, 4)
            with pytest.raises(ValueError, match="into rows 0, 1"):
                models.prefill(torch.tensor([[3]]), torch.tensor([1]), torch.tensor([2]))
            assert len(models.prefill(torch.tensor([[3]]), torch.tensor([1]), torch.tensor([0]))) == 2
    finally:
        torch.set_num_threads(before)
