"""A step's rows in pieces that fit into memory: the same update, whatever the pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import model_of

from unidetox_ray.core.loop import LoopSettings, PlainStepper, batch_at, share, train

ROWS = [
    [1, 20, 30, 4, 5, 6, 7, 8],
    [5, 6, 7],
    [7, 8, 9, 10, 11, 12, 13],
    [9, 9, 9, 8],
    [3, 4],
    [8, 7, 6, 5, 4],
]
SETTINGS = LoopSettings(steps=3, lr=1e-3, batch_size=5, seed=3, compile="off")


def trained(settings):
    model = model_of("llama")
    log = train(PlainStepper(model, settings), ROWS, 0, settings)
    return log, torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize("precision", ["fp32", "bf16_master"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_pieces_make_the_update_of_the_whole_batch(size, precision):
    whole, weights = trained(replace(SETTINGS, precision=precision))
    pieces, same = trained(replace(SETTINGS, precision=precision, micro_batch=size))
    start = torch.cat([weight.detach().flatten() for weight in model_of("llama").parameters()])
    # bfloat16 rounds the pieces' sums elsewhere, and AdamW makes a step of lr of a gradient that is nearly 0.
    near = {"fp32": 1e-3, "bf16_master": 0.2}[precision]
    assert whole.loss == pytest.approx(pieces.loss, abs=near / 10)
    assert (weights - same).norm() < near * (weights - start).norm()
    assert whole.tokens == pieces.tokens


def test_a_piece_as_large_as_the_batch_is_the_batch():
    assert torch.equal(trained(SETTINGS)[1], trained(replace(SETTINGS, micro_batch=5))[1])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_worker_has_as_many_pieces_and_every_row_once(world, size):
    batch = batch_at(0, ROWS, 0, SETTINGS)
    shares = [share(batch, rank, world).pieces(size) for rank in range(world)]
    assert len({len(pieces) for pieces in shares}) == 1
    flat = [piece for pieces in shares for piece in pieces]
    assert max(piece.input_ids.shape[0] for piece in flat) <= size
    assert sum(piece.tokens for piece in flat) == batch.tokens
    assert {piece.targets for piece in flat} == {batch.targets}
    kept = torch.cat([piece.input_ids for piece in flat if piece.tokens])
    assert sorted(kept.tolist()) == sorted(batch.input_ids.tolist())
