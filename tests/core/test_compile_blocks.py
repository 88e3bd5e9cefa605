"""Blocks compiled in place: the same training, the same names, few variants, and a way back. No C++ compiler is used."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from small_models import FAMILIES, V, model_of
from transformers import AutoModelForCausalLM

from unidetox_ray.core.compile_blocks import CompiledBlocks, blocks_of, wanted
from unidetox_ray.core.loop import LoopSettings, PlainStepper, train

SETTINGS = LoopSettings(steps=6, lr=1e-3, batch_size=2, compile="blocks")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def rows(lengths=(9, 4, 7, 2, 12, 3, 5, 6, 8, 10, 11)) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(1)
    return [torch.randint(3, V, (length,), generator=numbers).tolist() for length in lengths]


def trained(model, how: str, backend="aot_eager"):
    settings = LoopSettings(**{**vars(SETTINGS), "compile": how})
    stepper = PlainStepper(model, settings, backend=backend)
    return stepper, train(stepper, rows(), 0, settings)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_training_and_the_same_names(name, tmp_path):
    eager, compiled = model_of(name), model_of(name)
    _, expected = trained(eager, "off")
    stepper, log = trained(compiled, "blocks")
    assert stepper.blocks.active and len(stepper.blocks.blocks) == 2
    assert all(block._compiled_call_impl is not None for block in stepper.blocks.blocks)
    assert log.loss == pytest.approx(expected.loss, abs=1e-5)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    compiled.eval().save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(opened(input_ids=ids).logits, compiled(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_share_what_is_compiled_and_widths_do_not_compile_anew(name):
    made = []

    def backend(graph, inputs):
        made.append(len(inputs))
        return graph.forward

    counts = []
    for layers in (2, 6):
        made.clear()
        torch._dynamo.reset()
        trained(model_of(name, layers), "blocks", backend)
        counts.append(len(made))
    # Not a multiple of the layers, and far fewer than the widths: the first, then one with a symbol for each of
    # rows and positions.
    assert counts[0] == counts[1] <= 4, counts


def test_a_compiler_that_fails_costs_a_warning_and_nothing_else(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler on this machine\nand a long trace")

    _, expected = trained(with_dropout(), "off")
    with caplog.at_level(logging.WARNING, logger="unidetox_ray.core.compile_blocks"):
        stepper, log = trained(with_dropout(), "blocks", broken)
    assert not stepper.blocks.active and log.loss == expected.loss  # dropout included
    ours = [r.getMessage() for r in caplog.records if r.name == "unidetox_ray.core.compile_blocks"]
    assert len(ours) == 1 and "no compiler on this machine" in ours[0] and "\n" not in ours[0]


def test_a_backward_pass_that_cannot_be_compiled_is_done_again(caplog):
    from torch._dynamo.backends.common import aot_autograd

    def broken(graph, inputs):
        raise RuntimeError("backward does not lower")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=broken)
    _, expected = trained(model_of("gpt2"), "off")
    with caplog.at_level(logging.WARNING, logger="unidetox_ray.core.compile_blocks"):
        stepper, log = trained(model_of("gpt2"), "blocks", backend)
    assert not stepper.blocks.active and log.loss == expected.loss


def with_dropout():
    model = model_of("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    torch.manual_seed(3)
    return model


def test_an_error_of_the_model_itself_is_raised():
    blocks = CompiledBlocks(copy.deepcopy(model_of("gpt2")), "eager")
    with pytest.raises(ZeroDivisionError):
        blocks.run(lambda: 1 / 0)
    blocks = CompiledBlocks(model_of("gpt2"), "eager")
    with pytest.raises(torch.OutOfMemoryError):
        blocks.run(_out_of_memory)
    assert blocks.active  # memory is no reason to stop compiling


def _out_of_memory() -> None:
    raise torch.OutOfMemoryError("full")


def test_evaluations_in_between_compile_nothing():
    made = []

    def backend(graph, inputs):
        made.append(1)
        return graph.forward

    stepper, _ = trained(model_of("gpt2"), "blocks", backend)
    count = len(made)
    with stepper.blocks.paused(), torch.no_grad():
        stepper.model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    assert len(made) == count > 0 and stepper.blocks.active
    assert all(block._compiled_call_impl is not None for block in stepper.blocks.blocks)


def test_blocks_are_the_longest_list_of_one_kind():
    for name in FAMILIES:
        assert len(blocks_of(model_of(name, 3))) == 3
    odd = torch.nn.ModuleDict(
        {
            "mixed": torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.ReLU()]),
            "layers": torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]),
        }
    )
    assert blocks_of(odd) == list(odd["layers"])
    assert blocks_of(torch.nn.Linear(2, 2)) == []
    assert CompiledBlocks(torch.nn.Linear(2, 2)).run(lambda: 3) == 3


def test_auto_compiles_on_cuda_alone():
    assert wanted("auto", torch.device("cuda")) and not wanted("auto", torch.device("cpu"))
    assert wanted("blocks", torch.device("cpu")) and not wanted("off", torch.device("cuda"))
