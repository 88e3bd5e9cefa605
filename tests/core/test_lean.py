"""The lean decoder on weights of its own: rows independent bit for bit, moves of rows, stale weights, the hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from unidetox_ray.core.decoder import Block, Decoder, Norm, Rotary
from unidetox_ray.core.lean import LeanRunner
from unidetox_ray.core.linear import Matrix, packing_works
from unidetox_ray.core.runner import Runner
from unidetox_ray.errors import ModelError

VOCAB = 97
KINDS = ("learned", "rotary", "alibi", "narrow")
packed = pytest.mark.skipif(not packing_works(), reason="this torch has no packed product")


def decoder(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Decoder:
    """Random weights: learned positions; rotary, gated, grouped queries; ALiBi, parallel, one key head; heads of 12."""
    draw = torch.Generator().manual_seed(seed)
    heads, groups, size = {
        "learned": (2, 2, 24),
        "rotary": (4, 2, 24),
        "alibi": (3, 1, 16),
        "narrow": (4, 4, 12),
    }[kind]
    hidden = heads * size

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=draw) * shape[-1] ** -0.5).to(dtype)

    def matrix(rows: int, columns: int, parts: int = 1, transposed: bool = False) -> Matrix:
        shapes = [(columns, rows) if transposed else (rows // parts, columns)] * parts
        return Matrix(tuple((random(*shape) * 2, random(rows // parts)) for shape in shapes), transposed)

    def norm() -> Norm:
        return Norm(1 + random(hidden), None if kind == "rotary" else random(hidden), 1e-5)

    width = 3 * hidden
    alibi = kind == "alibi"
    blocks = tuple(
        Block(
            norm=norm(),
            qkv=matrix((heads + 2 * groups) * size, hidden, 2 if kind == "rotary" else 1, kind == "learned"),
            out=matrix(hidden, hidden),
            norm_mlp=None if alibi else norm(),
            up=matrix(width, hidden),
            gate=matrix(width, hidden) if kind == "rotary" else None,
            down=matrix(hidden, width),
            scale=size**-0.5,
        )
        for _ in range(2)
    )
    frequencies = 100.0 ** (-torch.arange(0, size, 2) / size)
    return Decoder(
        blocks=blocks,
        final=norm(),
        head=matrix(VOCAB, hidden),
        embedding=random(VOCAB, hidden) * 5,
        positions=random(202, hidden) * 5 if kind in ("learned", "narrow") else None,
        offset=2,
        rotary=Rotary(frequencies, 1.0) if kind == "rotary" else None,
        slopes=torch.tensor([0.5, 0.1, 0.02]) if alibi else None,
        heads=heads,
        kv_heads=groups,
        head_size=size,
        norm_kind="rms" if kind == "rotary" else "layer",
        activation={"learned": "gelu_tanh", "rotary": "silu", "alibi": "gelu", "narrow": "relu"}[kind],
        parallel=alibi,
        grouped=alibi,
    )


def texts(count: int, new: int, longest: int = 20, seed: int = 1) -> list[tuple[list[int], list[int]]]:
    """Prompts of 1 to `longest` ids, and the `new` ids that follow each."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    ids = torch.randint(VOCAB, (count, longest + new), generator=draw).tolist()
    return [(row[:length], row[length : length + new]) for row, length in zip(ids, lengths, strict=True)]


def fill(runner: LeanRunner, prompts: Sequence[list[int]], rows: Sequence[int]) -> Tensor:
    ids = torch.full((len(prompts), max(map(len, prompts))), 3)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return runner.prefill(ids, torch.tensor([len(prompt) for prompt in prompts]), torch.tensor(rows)).clone()


def together(runner: LeanRunner, jobs: Sequence[tuple[list[int], list[int]]], capacity: int = 200) -> Tensor:
    """All texts in one batch: (N, new + 1, V) logits."""
    runner.open(len(jobs), capacity)
    seen = [fill(runner, [prompt for prompt, _ in jobs], range(len(jobs)))]
    for step in range(len(jobs[0][1])):
        seen.append(runner.step(torch.tensor([new[step] for _, new in jobs])).clone())
    return torch.stack(seen, dim=1)


def test_it_is_a_runner() -> None:
    runner = LeanRunner(lambda: decoder("learned"))
    assert isinstance(runner, Runner)
    assert runner.refills and runner.shrinks and runner.vocab == VOCAB


@pytest.mark.parametrize("kind", KINDS)
def test_both_forwards_and_a_cacheless_pass_agree(kind: str) -> None:
    jobs = texts(5, 30)
    for dtype, limit in ((torch.float32, 2e-5), (torch.float64, 1e-6 if kind == "rotary" else 1e-12)):
        weights = decoder(kind, dtype)
        cpu = together(LeanRunner(lambda w=weights: w), jobs)
        by_ops = together(LeanRunner(lambda w=weights: w, through_ops=True), jobs)
        # No steps: every prefix is a prompt of its own.
        prompt, new = jobs[0]
        prefixes = [(prompt + new[:taken], []) for taken in range(len(new) + 1)]
        whole = together(LeanRunner(lambda w=weights: w), prefixes)[:, 0]
        scale = cpu.abs().max()
        assert (cpu - by_ops).abs().max() <= limit * scale
        assert (cpu[0] - whole).abs().max() <= limit * scale


@packed
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_in_any_company(kind: str) -> None:
    weights = decoder(kind)
    runner = LeanRunner(lambda: weights)
    jobs = texts(64, 7)
    # Two long ones widen the prompts and the key length past a block of keys.
    ((long, _),) = texts(1, 0, longest=150, seed=5)
    for job, length in ((7, 150), (20, 126)):
        jobs[job] = (long * 150)[:length], jobs[job][1]
    some = [0, 7, 20, 33, 63]
    alone = torch.cat([together(runner, [jobs[job]]) for job in some])
    whole = together(runner, jobs)
    assert torch.equal(whole[some], alone)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(together(runner, jobs[::-1]), whole.flip(0))
            assert torch.equal(together(runner, jobs[:16]), whole[:16])
            assert torch.equal(together(runner, jobs[30:35]), whole[30:35])
            assert torch.equal(together(runner, [jobs[20]]), whole[20:21])
    finally:
        torch.set_num_threads(1)


@packed
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_among_refills_and_drops(kind: str) -> None:
    weights = decoder(kind)
    runner = LeanRunner(lambda: weights)
    jobs = texts(30, 24)
    alone = [together(runner, [job])[0] for job in jobs]
    runner.open(20, 60)
    holds, taken = list(range(20)), [0] * 20
    seen: dict[int, list[Tensor]] = {}
    for row, logits in enumerate(fill(runner, [jobs[job][0] for job in holds], range(20))):
        seen[row] = [logits]
    waiting = list(range(20, 30))
    for turn in range(40):
        tokens = [jobs[job][1][at] if at < 24 else 5 for job, at in zip(holds, taken, strict=True)]
        for row, logits in enumerate(runner.step(torch.tensor(tokens)).clone()):
            if taken[row] < 24:
                seen[holds[row]].append(logits)
            taken[row] += 1
        if turn in (3, 9):  # rows under way give place to new texts, not in order
            rows = [11, 2, 17, 6, 1]
            new, waiting = waiting[:5], waiting[5:]
            for row, job, logits in zip(
                rows, new, fill(runner, [jobs[job][0] for job in new], rows), strict=True
            ):
                holds[row], taken[row], seen[job] = job, 0, [logits]
        if turn == 12:
            kept = [0, 1, 2, 5, 6, 7, 11, 17, 19]
            runner.keep(torch.tensor(kept))
            holds, taken = [holds[row] for row in kept], [taken[row] for row in kept]
    for job, logits in seen.items():
        assert torch.equal(torch.stack(logits), alone[job][: len(logits)]), job
    assert sum(len(logits) == 25 for logits in seen.values()) == 9


@pytest.mark.parametrize("through_ops", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_repeat_copies_rows_and_keep_forgets_the_others(kind: str, through_ops: bool) -> None:
    runner = LeanRunner(lambda: decoder(kind), through_ops=through_ops)
    jobs = texts(3, 6)
    wanted = together(runner, jobs)
    runner.open(8, 40)
    first = fill(runner, [prompt for prompt, _ in jobs], range(3))
    # 0 and 1 change places, 2 stays and has copies: every source is read before a target is written.
    runner.repeat(torch.tensor([1, 0, 2, 2, 0]), torch.tensor([0, 1, 5, 7, 6]))
    order = [1, 0, 2, None, None, 2, 0, 2]
    close = torch.testing.assert_close
    close(first, wanted[:, 0])
    for step in range(6):
        if step == 3:
            runner.keep(torch.tensor([1, 2, 5, 6]))
            order = [0, 2, 2, 0]
        tokens = torch.tensor([0 if job is None else jobs[job][1][step] for job in order])
        for job, logits in zip(order, runner.step(tokens), strict=True):
            if job is not None:
                close(logits, wanted[job, step + 1])


def test_rows_may_be_stepped_past_the_capacity() -> None:
    runner = LeanRunner(lambda: decoder("learned"))
    jobs = texts(2, 12, longest=4)
    wanted = together(runner, [jobs[1]])[0]
    runner.open(2, 16)
    fill(runner, [jobs[0][0]], [0])
    for _ in range(25):
        runner.step(torch.tensor([5, 6]))
    seen = [fill(runner, [jobs[1][0]], [1])[0]]
    for token in jobs[1][1]:
        seen.append(runner.step(torch.tensor([5, token]))[1].clone())
    torch.testing.assert_close(torch.stack(seen), wanted)


@pytest.mark.parametrize("through_ops", [False, True])
def test_a_broken_text_does_not_reach_the_next_one_in_its_row(through_ops: bool) -> None:
    weights = decoder("learned")
    weights.embedding[5] = torch.inf
    runner = LeanRunner(lambda: weights, through_ops=through_ops)
    clean = ([1, 2, 3], [4, 6, 7, 8])
    wanted = together(runner, [clean])[0]
    runner.open(3, 40)
    broken = fill(runner, [[5] * 30, [5], [1, 2]], [0, 1, 2])
    assert broken[:2].isnan().all() and not broken[2].isnan().any()
    seen = [fill(runner, [clean[0], clean[0]], [1, 0])]
    for token in clean[1]:
        seen.append(runner.step(torch.tensor([token, token, 5]))[:2].clone())
    for row in torch.stack(seen, dim=1):
        torch.testing.assert_close(row, wanted)


@pytest.mark.parametrize("through_ops", [False, True])
def test_the_hook_sees_open_rows_before_the_head(through_ops: bool) -> None:
    weights = decoder("rotary")
    runner = LeanRunner(lambda: weights, through_ops=through_ops)
    jobs = texts(3, 2)
    wanted = together(runner, jobs)
    shapes: list[tuple[int, ...]] = []

    def first_row_to_zero(hidden: Tensor) -> Tensor:
        shapes.append(tuple(hidden.shape))
        return hidden * torch.tensor([[0.0], [1.0], [1.0]])

    runner.on_hidden = first_row_to_zero
    steered = together(runner, jobs)
    bias = weights.head.parts[0][1]
    assert bias is not None
    torch.testing.assert_close(steered[0], bias.expand(3, -1))
    torch.testing.assert_close(steered[1:], wanted[1:])
    assert shapes == [(3, 96)] * 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w: w.add_(0.5), id="in place"),
        pytest.param(lambda w: w.data.mul_(1.5), id="through data"),
        pytest.param(lambda w: setattr(w, "data", w.data * 1.5), id="moved"),
    ],
)
def test_weights_that_changed_between_two_decodes_show(change: Callable[[Tensor], Any]) -> None:
    weights = decoder("learned")
    runner = LeanRunner(lambda: weights)
    jobs = texts(2, 3)
    before = together(runner, jobs)
    ready = runner._forward._layers  # type: ignore[union-attr]
    assert torch.equal(together(runner, jobs), before)
    assert runner._forward._layers is ready  # type: ignore[union-attr]
    for part in (weights.blocks[0].up.parts[0][0], weights.blocks[1].qkv.parts[0][1], weights.final.weight):
        assert part is not None
        change(part)
        after = together(runner, jobs)
        assert not torch.equal(after, before)
        assert torch.equal(after, together(LeanRunner(lambda: weights), jobs))
        before = after


def test_what_a_runner_refuses() -> None:
    runner = LeanRunner(lambda: decoder("learned"))
    with pytest.raises(RuntimeError, match="open"):
        runner.step(torch.tensor([1]))
    with pytest.raises(ModelError, match="201 positions are asked for, but the model knows 200"):
        runner.open(1, 201)
    runner.open(1, 4)
    with pytest.raises(ValueError, match="5 ids"):
        fill(runner, [[1, 2, 3, 4, 5]], [0])
    runner.close()
    with pytest.raises(RuntimeError, match="open"):
        fill(runner, [[1]], [0])
    runner.open(1, 4)
    assert fill(runner, [[1]], [0]).shape == (1, VOCAB)
