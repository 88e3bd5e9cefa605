"""What holds for every registered weights method on every family, through the function that the stage `edit` calls."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_models import Kit, with_words_swapped
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from unidetox_ray import registry
from unidetox_ray.core.decode import decode
from unidetox_ray.core.streams import uniforms
from unidetox_ray.errors import ModelError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.families.loading import load_model, load_tokenizer
from unidetox_ray.families.parts import layout_of
from unidetox_ray.families.runners import runner_of
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.edit import edit_task, write_edit

METHODS = [name for name in registry.names("methods") if registry.lookup("methods", name).kind == "weights"]


@pytest.fixture(params=METHODS)
def method(request):
    return registry.lookup("methods", request.param)


@pytest.fixture(scope="module")
def stored(kit, tmp_path_factory) -> dict[str, Path]:
    """Folders of the family's base and toxic models."""
    root = tmp_path_factory.mktemp(f"stored-{kit.family}")
    for role in ("base", "toxic"):
        kit.models[role].save_pretrained(root / role)
        kit.tokenizers[role].save_pretrained(root / role)
    return {role: root / role for role in ("base", "toxic")}


def handle(folder: Path, family: str) -> dict[str, Any]:
    return {"path": str(folder), "revision": None, "key": folder.name, "family": family, "name": folder.name}


def edited(kit: Kit, method: Any, stored: dict[str, Path], folder: Path, **settings: Any) -> Path:
    """The finished folder of the edit of the family's base model, as a Ray task leaves it."""
    entry = MethodEntry(method=method.name, label=method.name, settings=settings)
    cell = Cell(f"{kit.family}-{method.name}-s1", kit.family, entry, 1, handle(stored["base"], kit.family))
    task = edit_task(cell, method, handle(stored["toxic"], kit.family), folder, "key")
    write_edit(json.loads(json.dumps(task)))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def logits(model: Any, kit: Kit) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([kit.prompts[1]])).logits
    return found


def texts(model: Any, kit: Kit) -> list[Any]:
    return decode(
        [runner_of(model)], kit.prompts, uniform=uniforms(3, range(len(kit.prompts)), 8), max_new_tokens=8,
        end_ids=[kit.ids.eos], pad_id=kit.ids.pad,
    )  # fmt: skip


def test_at_neutral_strength_it_is_the_base_model_bit_for_bit(kit, method, stored, tmp_path):
    folder = edited(kit, method, stored, tmp_path / "out", **{method.strength: method.neutral})
    before, after = tensors(stored["base"]), tensors(folder)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # As bytes: a zero that changed its sign is equal and not the same.
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
    model = load_model(str(folder))
    assert torch.equal(logits(model, kit), logits(kit.base, kit))
    assert texts(model, kit) == texts(kit.base, kit)


def test_at_its_default_strength_it_is_not(kit, method, stored, tmp_path):
    model = load_model(str(edited(kit, method, stored, tmp_path / "out")))
    assert not torch.allclose(logits(model, kit), logits(kit.base, kit), atol=0.05)
    assert texts(model, kit) != texts(kit.base, kit)


def test_what_is_saved_and_opened_is_the_edit_of_the_models_in_memory(kit, method, stored, tmp_path):
    folder = edited(kit, method, stored, tmp_path / "out")
    settings, expected = method.settings(), copy.deepcopy(kit.base)
    layout = layout_of(kit.base.config)
    ours, theirs = expected.state_dict(), kit.models["toxic"].state_dict()
    with torch.no_grad():
        for name, part in layout.parts.items():
            base, toxic = ours[name].clone(), theirs[name].clone()
            if not base.is_floating_point() or not method.edits(part, settings):
                continue
            made = method.edit(part, base, toxic, settings)
            assert made.dtype == torch.float32 and made.shape == base.shape
            assert torch.equal(base, ours[name]) and torch.equal(toxic, theirs[name]), (
                f"{name} was written to"
            )
            ours[name].copy_(made)
    model = load_model(str(folder))
    assert torch.equal(logits(model, kit), logits(expected, kit))
    assert texts(model, kit) == texts(expected, kit)
    assert load_tokenizer(str(folder)).get_vocab() == kit.tokenizers["base"].get_vocab()
    # Saved again by transformers, opened again: still the same.
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load_model(str(tmp_path / "again")), kit), logits(expected, kit))


def test_the_same_edit_twice_is_the_same_file(kit, method, stored, tmp_path):
    first, second = (edited(kit, method, stored, tmp_path / name) for name in ("first", "second"))
    for name in ("model.safetensors", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    # And in the place of an older result nothing of it is left.
    (second / "left.safetensors").write_bytes(b"")
    assert not (edited(kit, method, stored, second) / "left.safetensors").exists()


def test_tied_weights_are_edited_once_and_tied_again(kit, method, stored, tmp_path):
    folder = edited(kit, method, stored, tmp_path / "out")
    model = load_model(str(folder))
    pairs = [(each.get_input_embeddings(), each.get_output_embeddings()) for each in (kit.base, model)]
    tied = [inner.weight.data_ptr() == outer.weight.data_ptr() for inner, outer in pairs]
    assert tied[0] == tied[1]
    layout = layout_of(kit.base.config)
    assert set(tensors(folder)) == set(layout.parts) and bool(layout.tied) is tied[0]
    assert not torch.equal(pairs[0][0].weight, pairs[1][0].weight), "the embedding itself is edited"


def test_a_toxic_model_with_another_tokenizer_is_refused_in_one_line(kit, method, stored, tmp_path):
    wrong = with_words_swapped(kit.tokenizers["base"])
    kit.models["toxic"].save_pretrained(tmp_path / "toxic")
    wrong.save_pretrained(tmp_path / "toxic")
    with pytest.raises(ModelError, match="the toxic model's tokenizer is not the base model's") as problem:
        edited(kit, method, {**stored, "toxic": tmp_path / "toxic"}, tmp_path / "out")
    assert "\n" not in str(problem.value) and not (tmp_path / "out").exists()


def test_a_toxic_model_of_another_architecture_is_refused_in_one_line(kit, method, stored, tmp_path):
    """Of the right family and tokenizer, one layer short; and of another family with this one's tokenizer."""
    short = copy.deepcopy(kit.models["toxic"].config)
    short.num_hidden_layers -= 1
    if hasattr(short, "layer_types") and short.layer_types:
        short.layer_types = short.layer_types[:-1]
    other = registry.lookup("families", "llama" if kit.family != "llama" else "gpt2")
    foreign = other.tiny_config(
        kit.base.config.vocab_size, hidden=32, layers=2, heads=2, max_positions=64, ids=kit.ids
    )
    for name, config in (("short", short), ("foreign", foreign)):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        kit.tokenizers["toxic"].save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match=rf"^the toxic model {name}: ") as problem:
            edited(kit, method, {**stored, "toxic": tmp_path / name}, tmp_path / "out")
        assert "give a model that was fine-tuned from" in str(problem.value)
        assert "\n" not in str(problem.value) and not (tmp_path / "out").exists()
