"""Bottleneck adapters on every family: the base model at the start, a folder that opens again, never read past."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from lean_models import KINDS, build
from transformers import Qwen2Config, Qwen2ForCausalLM

from unidetox_ray.core.bottleneck import bottleneck_state
from unidetox_ray.core.decode import decode, decode_slowly
from unidetox_ray.core.lean import LeanRunner
from unidetox_ray.core.streams import uniforms
from unidetox_ray.errors import ModelError
from unidetox_ray.families import bottleneck
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.lean import lean_or_reason
from unidetox_ray.families.loading import load_model
from unidetox_ray.families.runners import runner_of

IDS = torch.tensor([[5, 9, 3, 17, 4, 11, 8]])


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def stirred(model, size=4):
    """The model with adapters whose weights are all random: as after a training."""
    bottleneck.with_bottlenecks(model, size=size, seed=1)
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for tensor in bottleneck_state(dict(model.named_parameters())).values():
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=draw))
    return model


@pytest.fixture
def saved(tiny, tmp_path):
    """(folder of the base model, folder of the adapters, the model in memory)."""
    base, folder = tmp_path / "run" / "base", tmp_path / "run" / "models" / "adapted"
    tiny.model.save_pretrained(base)
    tiny.tokenizer.save_pretrained(base)
    model = stirred(load_model(str(base)))
    handle = {"path": str(base), "revision": None, "key": "k1", "name": tiny.family.name}
    folder.mkdir(parents=True)
    bottleneck.save(folder, model, model.state_dict(), handle)
    tiny.tokenizer.save_pretrained(folder)
    return base, folder, model


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_are_the_base_model_bit_for_bit_and_each_counts(kind):
    model = build(kind)
    before = logits(model)
    places = bottleneck.places_of(model)
    assert len(places) == 2 * model.config.num_hidden_layers
    bottleneck.with_bottlenecks(model, size=4, seed=1)
    assert torch.equal(logits(model), before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == len(places) * 2 * 4 * 48
    draw = torch.Generator().manual_seed(5)
    # What stands behind any one sub-layer reaches the logits: parallel attention or not.
    for name in places:
        up = model.get_submodule(name).bottleneck.up.weight
        with torch.no_grad():
            up.copy_(torch.randn(up.shape, generator=draw))  # equal rows would be a shift, which norms undo
        assert (logits(model) - before).abs().max() > 1e-4, name
        with torch.no_grad():
            up.zero_()
    assert torch.equal(logits(model), before)


def test_the_folder_opens_as_the_same_model(saved):
    base, folder, model = saved
    opened = load_model(str(folder))
    assert torch.equal(logits(opened), logits(model))
    assert (logits(opened) - logits(load_model(str(base)))).abs().max() > 1e-3
    assert opened.state_dict().keys() == model.state_dict().keys() and not opened.training
    # The weights of the base model are not there a second time.
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    adapters = sum(t.numel() * 4 for t in bottleneck_state(model.state_dict()).values())
    assert sizes["bottleneck.safetensors"] < adapters + 4096 and "model.safetensors" not in sizes
    half = load_model(str(folder), dtype="bfloat16")
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert torch.allclose(logits(half).float(), logits(model), atol=0.1)


def test_decoding_reads_the_adapters_too(saved):
    base, folder, _ = saved
    adapted, plain = load_model(str(folder)), load_model(str(base))
    runner, reason = lean_or_reason(adapted)
    assert runner is None and "is hooked" in reason
    assert isinstance(runner_of(adapted), GenericRunner) and isinstance(runner_of(plain), LeanRunner)
    asked = {"uniform": uniforms(1, range(6), 12), "max_new_tokens": 12, "end_ids": [2], "copies": 3}
    prompts = [[3, 4, 5], [6]]
    found = decode([runner_of(adapted)], prompts, pad_id=0, **asked)
    assert found == decode_slowly([adapted], prompts, **asked)
    assert found != decode([runner_of(plain)], prompts, pad_id=0, **asked)
    # Adapters put on a model that was decoded before are not overlooked either.
    bottleneck.with_bottlenecks(plain, size=4, seed=1)
    assert isinstance(runner_of(plain), GenericRunner)


def test_a_run_folder_moves_with_its_base_models(saved):
    base, _, model = saved
    root = base.parent
    elsewhere = root.parent / "elsewhere"
    root.rename(elsewhere)
    assert torch.equal(logits(load_model(str(elsewhere / "models" / "adapted"))), logits(model))


def test_without_its_base_model_it_says_what_is_missing_and_what_to_do(saved, tmp_path):
    base, folder, model = saved
    moved = tmp_path / "moved"
    base.rename(moved)
    with pytest.raises(ModelError, match=r"which is no longer at .*; write its place into base\.path of"):
        load_model(str(folder))
    value = json.loads((folder / bottleneck.CONFIG).read_text())
    value["base"]["path"] = str(moved)
    (folder / bottleneck.CONFIG).write_text(json.dumps(value))
    assert torch.equal(logits(load_model(str(folder))), logits(model))


def test_other_weights_at_the_base_models_place_are_refused(saved):
    base, folder, _ = saved
    other = load_model(str(base))
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    other.save_pretrained(base)
    with pytest.raises(ModelError, match="has other weights than the one that its adapters were trained on"):
        load_model(str(folder))


def test_damaged_folders_are_refused_in_one_line(saved):
    _, folder, _ = saved
    for name, content in ((bottleneck.CONFIG, b"{"), (bottleneck.WEIGHTS, b"xx")):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name}.*copy the folder again"):
            load_model(str(folder))
        (folder / name).write_bytes(whole)
    value = json.loads((folder / bottleneck.CONFIG).read_text())
    (folder / bottleneck.CONFIG).write_text(json.dumps({**value, "size": 9}))
    with pytest.raises(ModelError, match="does not fit its base model"):
        load_model(str(folder))
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="no such folder"):
        load_model(str(folder))


def test_a_model_whose_sub_layers_are_not_known_is_refused_and_a_llama_like_one_is_not():
    from transformers import MambaConfig, MambaForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 61}  # fmt: skip
    mamba = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, vocab_size=61))
    with pytest.raises(ModelError, match=r"'mamba': where its sub-layers end is not known.*adapter: lora"):
        bottleneck.with_bottlenecks(mamba, size=4, seed=1)
    qwen = Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2)).eval()
    before = logits(qwen)
    assert len(bottleneck.places_of(qwen)) == 2
    assert torch.equal(logits(bottleneck.with_bottlenecks(qwen, size=4, seed=1)), before)
