"""Captured steps against eager ones: the books on the CPU with a recorder that stands in for the capture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unidetox_ray.core import graphs, kernels
from unidetox_ray.core.decoder import Decoder
from unidetox_ray.core.graphs import EagerStep, GraphedStep, step_for, why_not_graphed
from unidetox_ray.core.lean import LeanRunner
from unidetox_ray.core.lockstep import LockStep
from unidetox_ray.core.logits import Mixture, Sampling

CONTRAST = Mixture((1.0, -1.0), alpha=0.05)
ROWS, CAPACITY = 3, 60
Maker = Callable[..., Decoder]


def opened(models: LockStep) -> torch.Tensor:
    """Three prompts of different lengths read; their last ids."""
    device = models.device
    models.open(ROWS, CAPACITY)
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 0, 0]], device=device)
    lengths, rows = torch.tensor([5, 2, 3], device=device), torch.arange(ROWS, device=device)
    models.prefill(ids, lengths, rows)
    return torch.tensor([11, 12, 13], device=device)


@pytest.fixture
def lockstep(random_decoder: Maker) -> Callable[..., LockStep]:
    def new(**options: Any) -> LockStep:
        return LockStep([LeanRunner(lambda seed=seed: random_decoder(seed), **options) for seed in (1, 2)])

    return new


@pytest.fixture
def numbers() -> torch.Tensor:
    return torch.rand(40, ROWS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Recorder:
    """Captures as CUDA does: the work is not done now, and later as often as one likes."""

    def __init__(self) -> None:
        self.works: list[int] = []

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        number = len(self.works)
        self.works.append(0)

        def replay() -> None:
            self.works[number] += 1
            work()

        return replay


@pytest.mark.parametrize("through_ops", [False, True])
def test_replayed_steps_draw_what_eager_steps_draw(
    lockstep: Callable[..., LockStep], numbers: torch.Tensor, through_ops: bool
) -> None:
    recorder = Recorder()
    with lockstep(through_ops=through_ops) as models:
        last = opened(models)
        eager = EagerStep(models, CONTRAST, Sampling())(last, numbers)
        assert len({tuple(row) for row in eager.T.tolist()}) == ROWS  # the rows' texts differ
        last = opened(models)
        step = GraphedStep(
            models, CONTRAST, Sampling(), capacity=CAPACITY, capture=recorder, lengths=[16, 32, 64]
        )
        found = []
        for start, end in [(0, 1), (1, 20), (20, 40)]:
            found.append(step(last, numbers[start:end]))
            last = found[-1][-1]
    assert torch.equal(torch.cat(found), eager)
    # The first step of each bucket is eager. Lengths 5 + 1 .. 5 + 40: 11, 16 and 13 steps in the buckets of 16, 32 and
    # 64, if the forward counts in sixteens; the CPU's own counts in larger steps.
    assert len(recorder.works) == step.captured and sum(recorder.works) == 40 - step.captured
    assert recorder.works == [10, 15, 12] or not through_ops
    assert step.reason is None and step.warmup_seconds > 0.0


def test_other_rows_get_their_own_graph(lockstep: Callable[..., LockStep], numbers: torch.Tensor) -> None:
    recorder = Recorder()
    with lockstep() as models:
        last = opened(models)
        step = GraphedStep(models, CONTRAST, Sampling(), capacity=CAPACITY, capture=recorder, lengths=[64])
        first = step(last, numbers[:4])
        left = torch.tensor([0, 2])
        models.keep(left)
        second = step(first[-1][left], numbers[4:8, left])
        last = opened(models)
        expected = EagerStep(models, CONTRAST, Sampling())(last, numbers[:8])
    assert torch.equal(torch.cat([first[:, left], second]), expected[:, left])
    assert recorder.works == [3, 3]
    assert len(step._ready) == 1  # graphs of the former shape are let go: their buffers are gone


def test_a_hook_gets_a_graph_of_its_own(lockstep: Callable[..., LockStep], numbers: torch.Tensor) -> None:
    recorder = Recorder()
    with lockstep() as models:
        last = opened(models)
        step = GraphedStep(models, CONTRAST, Sampling(), capacity=CAPACITY, capture=recorder, lengths=[64])
        step(last, numbers[:3])
        models.runners[0].on_hidden = torch.neg
        step(last, numbers[3:6])
        models.runners[0].on_hidden = None
        step(last, numbers[6:9])
    assert recorder.works == [5, 2]


def test_a_failed_capture_leaves_eager_steps_and_a_reason(
    lockstep: Callable[..., LockStep], numbers: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    with lockstep() as models:
        expected = EagerStep(models, CONTRAST, Sampling())(opened(models), numbers[:6])
        last = opened(models)
        step = GraphedStep(models, CONTRAST, Sampling(), capacity=CAPACITY, capture=refuse)
        found = [step(last, numbers[:4])]
        found.append(step(found[0][-1], numbers[4:6]))
    assert torch.equal(torch.cat(found), expected)
    reason = "capturing a step failed: RuntimeError: operation not permitted when stream is capturing"
    assert step.reason == reason and step.captured == 0
    assert caplog.messages == [f"decoding continues without CUDA graphs: {reason}"]


def test_an_error_of_the_models_is_no_failed_capture(
    lockstep: Callable[..., LockStep], numbers: torch.Tensor
) -> None:
    def broken(_hidden: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with lockstep() as models:
        last = opened(models)
        step = GraphedStep(models, CONTRAST, Sampling(), capacity=CAPACITY, capture=Recorder())
        models.runners[1].on_hidden = broken
        with pytest.raises(torch.OutOfMemoryError):
            step(last, numbers[:1])
    assert step.reason is None


def test_buckets_hold_the_longest_row(lockstep: Callable[..., LockStep]) -> None:
    with lockstep() as models:
        opened(models)
        step = GraphedStep(
            models, CONTRAST, Sampling(), capacity=CAPACITY, capture=Recorder(), lengths=[32, 64]
        )
        assert step.bucket() == 32
        for runner in step._runners:
            runner._cache.host[:] = 40
        assert step.bucket() == 64
        for runner in step._runners:  # rows that ended may be stepped past the capacity
            runner._cache.host[:] = 99
        assert step.bucket() == 64


class Fake:
    """A runner on a device that is not there."""

    vocab, device, refills, shrinks, on_hidden = 5, torch.device("cuda"), True, False, None

    def bound(self) -> int:
        return 0

    def compute(self, tokens: torch.Tensor, longest: int) -> torch.Tensor:
        return torch.zeros(len(tokens), self.vocab)

    def advanced(self) -> None:
        """No cache, no length."""


def test_why_steps_are_not_captured(
    lockstep: Callable[..., LockStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    with lockstep() as models:
        assert (
            why_not_graphed(models, CONTRAST, Sampling())
            == "graphs are for CUDA devices, the models lie on cpu"
        )
        assert type(step_for(models, CONTRAST, Sampling(), capacity=8)) is EagerStep
    device: Any = LockStep([Fake(), Fake()])  # type: ignore[list-item]
    monkeypatch.setattr(kernels, "why_not", lambda _device: "no triton")
    assert why_not_graphed(device, CONTRAST, Sampling()) is None
    why = "the plain top-p waits for the device (no triton)"
    assert why_not_graphed(device, CONTRAST, Sampling(top_p=0.9)) == why
    assert why_not_graphed(device, Mixture((1.0, -1.0), nucleus=0.9), Sampling()) == why
    monkeypatch.setattr(kernels, "why_not", lambda _device: None)
    assert why_not_graphed(device, CONTRAST, Sampling(top_p=0.9)) is None
    half = Mixture((1.0, -1.0), dtype=torch.bfloat16)
    assert why_not_graphed(device, half, Sampling(top_p=0.9)) is not None
    monkeypatch.setenv(graphs.SWITCH, "0")
    assert why_not_graphed(device, CONTRAST, Sampling()) == "switched off by UNIDETOX_CUDA_GRAPHS=0"


def test_a_runner_whose_step_is_in_one_piece_is_not_captured() -> None:
    class Whole:
        vocab, device, refills, shrinks, on_hidden = 5, torch.device("cuda"), True, False, None

    models = LockStep([Whole()])  # type: ignore[list-item]
    why = "Whole does not part its step into the device's work and the host's"
    assert why_not_graphed(models, Mixture(), Sampling()) == why
    with pytest.raises(TypeError, match="why_not_graphed"):
        GraphedStep(models, Mixture(), Sampling(), capacity=8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(
    random_decoder: Maker, numbers: torch.Tensor, sampling: Sampling, dtype: torch.dtype
) -> None:
    def runner(seed: int) -> LeanRunner:
        ops = kernels if kernels.why_not(torch.device("cuda")) is None else None
        return LeanRunner(lambda: random_decoder(seed, "cuda", dtype), ops=ops)

    numbers = numbers.cuda()
    with LockStep([runner(1), runner(2)]) as models:
        expected = EagerStep(models, CONTRAST, sampling)(opened(models), numbers)
        last = opened(models)
        step = GraphedStep(models, CONTRAST, sampling, capacity=CAPACITY)
        found = [step(last, numbers[:8])]
        found.append(step(found[0][-1], numbers[8:]))
    assert step.reason is None and step.captured == len(step.buckets)
    assert torch.equal(torch.cat(found), expected)
