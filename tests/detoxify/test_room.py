"""The memory of a training: against what was measured, and that what is chosen fits and keeps the batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidetox_ray.detoxify.room import (
    GIB,
    SHARE,
    Device,
    Shape,
    choose,
    gib,
    least,
    peak_bytes,
    precisions,
    splits,
)

LLAMA_7B = Shape(6_738_415_616, 6_738_415_616, 32, 4096, 11008, 32000)
GPT2_XL = Shape(1_557_611_200, 1_557_611_200, 48, 1600, 6400, 50257)
#: An H200's peaks of full fine-tuning with 8 x 256 tokens (shared/reference/performance.md), in GiB.
MEASURED = {
    "llama bf16_pure, eager": (LLAMA_7B, "bf16_pure", 53.0),
    "llama bf16_master, DeepSpeed": (LLAMA_7B, "bf16_master", 138.1),
    "gpt2-xl bf16_pure, eager": (GPT2_XL, "bf16_pure", 18.4),
}
A100 = Device("cuda", 80 * 10**9, True)


@pytest.mark.parametrize(("shape", "precision", "peak"), MEASURED.values(), ids=MEASURED)
def test_the_estimate_is_near_what_was_measured(shape, precision, peak):
    assert peak_bytes(shape, precision, rows=8, pieces=1, length=256) / GIB == pytest.approx(peak, rel=0.08)


def test_the_papers_models_on_the_baselines_device():
    """Full fine-tuning of 7B fits an A100 in pure bfloat16 alone, GPT-2 XL with master weights as well."""
    order = precisions(A100, adapters=False)
    assert order == ("bf16_master", "bf16_pure")
    seven = choose(LLAMA_7B, A100, batch_size=8, length=256, accepted=order)
    assert seven is not None and (seven.precision, seven.rows) == ("bf16_pure", 8)
    small = choose(GPT2_XL, A100, batch_size=8, length=256, accepted=order)
    assert small is not None and (small.precision, small.rows) == ("bf16_master", 8)
    card = Device("cuda", 24 * 10**9, True)
    assert choose(LLAMA_7B, card, batch_size=8, length=256, accepted=order) is None


def test_adapters_freeze_the_rest():
    lora = Shape(6_778_392_576, 39_976_960, 32, 4096, 11008, 32000)
    order = precisions(A100, adapters=True)
    assert order == ("bf16_master",)
    card = Device("cuda", 24 * 10**9, True)
    found = choose(lora, card, batch_size=8, length=256, accepted=order)
    assert found is not None and found.rows < 8 and found.rows * found.pieces == 8


def test_where_bfloat16_is_no_help_it_is_float32():
    assert precisions(Device("cpu", 1, False), adapters=False) == ("fp32",)
    assert precisions(Device("cuda", 1, False), adapters=False) == ("fp32",)


SHAPES = st.builds(
    Shape, st.integers(10**5, 10**11), st.just(0), st.integers(1, 120), st.integers(8, 20000), st.integers(8, 80000),
    st.integers(100, 300000),
).map(lambda shape: Shape(shape.parameters, shape.parameters, *list(vars(shape).values())[2:]))  # fmt: skip


@given(SHAPES, st.integers(1, 64), st.integers(2, 4096), st.integers(10**7, 10**12))
def test_what_is_chosen_fits_and_nothing_larger_would(shape, batch, length, memory):
    device = Device("cuda", memory, True)
    order = precisions(device, adapters=False)
    found = choose(shape, device, batch_size=batch, length=length, accepted=order)
    smallest = least(shape, order, batch_size=batch, length=length)
    if found is None:
        assert smallest > SHARE * memory
        return
    assert found.peak <= SHARE * memory and found.peak >= smallest
    assert found.rows * (found.pieces - 1) < batch <= found.rows * found.pieces
    for rows, pieces in splits(batch):
        if rows > found.rows:
            assert (
                peak_bytes(shape, found.precision, rows=rows, pieces=pieces, length=length) > SHARE * memory
            )


@given(st.integers(1, 4096))
def test_splits_begin_with_the_batch_and_end_with_single_rows(batch):
    found = splits(batch)
    assert found[0] == (batch, 1) and found[-1][0] == 1
    assert [rows for rows, _ in found] == sorted({rows for rows, _ in found}, reverse=True)
    assert all(rows * pieces >= batch > rows * (pieces - 1) for rows, pieces in found)


def test_sizes_as_people_read_them():
    assert gib(3 * GIB) == "3.0 GiB" and gib(5 << 20) == "5 MiB"
