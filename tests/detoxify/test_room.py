"""The memory of a training: against what was measured, and that what is chosen fits and keeps the batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidetox_ray.detoxify.room import GIB, SHARE, Device, choose, gib, least, peak_bytes, precisions, splits
from unidetox_ray.families.loading import offline_config
from unidetox_ray.plan.counting import Model
from unidetox_ray.plan.shapes import of_config
from unidetox_ray.settings import FinetuneSection

LLAMA_7B = of_config(offline_config("meta-llama/Llama-2-7b-hf"), "7b")
GPT2_XL = of_config(offline_config("openai-community/gpt2-xl"), "xl")
PAPER = FinetuneSection(batch_size=8, max_length=256)
#: An H200's peaks of full fine-tuning with 8 x 256 tokens (shared/reference/performance.md), in GiB.
MEASURED = {
    "llama bf16_pure, eager": (LLAMA_7B, "bf16_pure", 53.0),
    "llama bf16_master, DeepSpeed": (LLAMA_7B, "bf16_master", 138.1),
    "gpt2-xl bf16_pure, eager": (GPT2_XL, "bf16_pure", 18.4),
}
A100 = Device("cuda", 80 * 10**9, True)


@pytest.mark.parametrize(("shape", "precision", "peak"), MEASURED.values(), ids=MEASURED)
def test_the_estimate_is_near_what_was_measured(shape, precision, peak):
    assert peak_bytes(shape, PAPER, precision, 8) / GIB == pytest.approx(peak, rel=0.08)


def test_the_papers_models_on_the_baselines_device():
    """Full fine-tuning of 7B fits an A100 in pure bfloat16 alone, GPT-2 XL with master weights as well."""
    order = precisions(A100, adapters=False)
    assert order == ("bf16_master", "bf16_pure")
    seven = choose(LLAMA_7B, PAPER, A100, order)
    assert seven is not None and (seven.precision, seven.rows) == ("bf16_pure", 8)
    small = choose(GPT2_XL, PAPER, A100, order)
    assert small is not None and (small.precision, small.rows) == ("bf16_master", 8)
    card = Device("cuda", 24 * 10**9, True)
    assert choose(LLAMA_7B, PAPER, card, order) is None


def test_adapters_freeze_the_rest():
    lora = PAPER.model_copy(update={"adapter": "lora"})
    order = precisions(A100, adapters=True)
    assert order == ("bf16_master",)
    card = Device("cuda", 24 * 10**9, True)
    found = choose(LLAMA_7B, lora, card, order)
    assert found is not None and found.rows < 8 and found.rows * found.pieces == 8


def test_where_bfloat16_is_no_help_it_is_float32():
    assert precisions(Device("cpu", 1, False), adapters=False) == ("fp32",)
    assert precisions(Device("cuda", 1, False), adapters=False) == ("fp32",)


SHAPES = st.builds(
    Model, name=st.just("any"), layers=st.integers(1, 120), hidden=st.integers(8, 20000), heads=st.integers(1, 128),
    kv_heads=st.integers(1, 128), head_size=st.integers(8, 256), widest=st.integers(8, 80000), gated=st.booleans(),
    vocab=st.integers(100, 300000), parameters=st.integers(10**5, 10**11), matrix=st.just(10**5),
)  # fmt: skip


@given(SHAPES, st.integers(1, 64), st.integers(2, 4096), st.integers(10**7, 10**12))
def test_what_is_chosen_fits_and_nothing_larger_would(shape, batch, length, memory):
    device = Device("cuda", memory, True)
    order = precisions(device, adapters=False)
    section = FinetuneSection(batch_size=batch, max_length=length)
    found = choose(shape, section, device, order)
    smallest = least(shape, section, order)
    if found is None:
        assert smallest > SHARE * memory
        return
    assert found.peak <= SHARE * memory and found.peak >= smallest
    assert found.rows * (found.pieces - 1) < batch <= found.rows * found.pieces
    for rows, _ in splits(batch):
        if rows > found.rows:
            assert peak_bytes(shape, section, found.precision, rows) > SHARE * memory


@given(st.integers(1, 4096))
def test_splits_begin_with_the_batch_and_end_with_single_rows(batch):
    found = splits(batch)
    assert found[0] == (batch, 1) and found[-1][0] == 1
    assert [rows for rows, _ in found] == sorted({rows for rows, _ in found}, reverse=True)
    assert all(rows * pieces >= batch > rows * (pieces - 1) for rows, pieces in found)


def test_sizes_as_people_read_them():
    assert gib(3 * GIB) == "3.0 GiB" and gib(5 << 20) == "5 MiB"
