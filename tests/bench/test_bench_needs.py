"""What a job needs: the formulas against counts taken from real models and from loops."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unidetox_ray.bench.limits import (
    Costs,
    Limits,
    Needs,
    costs_of,
    decode_needs,
    limits_of,
    reading_needs,
    training_needs,
)
from unidetox_ray.bench.shapes import causal_config, causal_model, token_rows
from unidetox_ray.families.loading import meta_parameters

CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "billions"), [("gpt2", 0.1244), ("gpt2-xl", 1.558), ("7b", 6.738)])
def test_shapes_have_the_real_numbers_of_parameters(size, billions):
    assert meta_parameters(causal_config(size)) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_operations_of_reading_are_what_torch_counts():
    model = causal_model("tiny", CPU, torch.float32)
    ids = torch.tensor(token_rows(1, 48, 48, 900))
    model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=ids)
    # Eager attention multiplies the masked half as well.
    assert reading_needs(costs_of(model), [48], causal=False).operations == counter.get_total_flops()


def test_weights_and_cache_are_counted_in_their_own_dtype():
    one, other = (costs_of(causal_model("tiny", CPU, dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert (one.itemsize, other.itemsize) == (4, 2)
    # Two layers of keys and values of width 96; four block matrices of 12 x 96 x 96 in all, and the head.
    assert one.kv == 2 * 2 * 96 and one.width == 2 * 96
    assert one.matrix == 2 * 12 * 96 * 96 + 900 * 96 and one.head == 900 * 96


def test_decoding_is_counted_position_by_position():
    costs = Costs(matrix=100, head=30, parameters=120, width=8, kv=16, itemsize=4)
    prompts, new, copies = [3, 5], 4, 2
    read = operations = 0
    for length in prompts:
        operations += 2 * 70 * length + 2 * 30 + 4 * 8 * sum(range(1, length + 1))
        for _ in range(copies):
            for step in range(1, new):  # the first token comes from the prompt's own pass
                operations += 2 * 100 + 4 * 8 * (length + step)
                read += 4 * 16 * (length + step)
    for rows, batches in ((None, 1), (4, 1), (3, 2), (1, 4)):
        needs = decode_needs([costs], prompts, new, copies=copies, rows=rows)
        assert needs.operations == operations
        assert needs.bytes == read + 4 * 100 * new * batches
    twice = decode_needs([costs, costs], prompts, new, copies=copies)
    assert twice.operations == 2 * operations


def test_training_counts_six_operations_a_weight_and_token():
    costs = Costs(matrix=100, head=30, parameters=120, width=8, kv=16, itemsize=2)
    assert training_needs(costs, tokens=64, steps=2) == Needs(10 * 2 * 120 * 2, 6 * 120 * 64)


def test_the_longer_bound_holds():
    limits = Limits(bandwidth=10.0, arithmetic=100.0)
    assert limits.seconds(Needs(bytes=20.0, operations=100.0)) == 2.0
    assert limits.seconds(Needs(bytes=5.0, operations=300.0)) == 3.0


def test_limits_are_measured_and_only_grow():
    first = limits_of(CPU, torch.float32)
    again = limits_of(CPU, torch.float32)
    assert 1e8 < first.bandwidth <= again.bandwidth < 1e13
    assert 1e8 < first.arithmetic <= again.arithmetic < 1e14
