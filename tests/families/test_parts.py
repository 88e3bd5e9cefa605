"""Layouts against what transformers saves, for every registered family and for names that it changes on the way."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from unidetox_ray import registry
from unidetox_ray.core.weights import StoredWeights, write_edited
from unidetox_ray.families.base import SpecialIds
from unidetox_ray.families.parts import layout_of

IDS = SpecialIds(bos=1, eos=2, pad=0, start=1)
OTHERS = {
    "gpt-neox": GPTNeoXConfig(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
}


def config_of(name):
    if name in OTHERS:
        return OTHERS[name]
    tiny = registry.lookup("families", name).tiny_config
    return tiny(61, hidden=32, layers=2, heads=2, max_positions=32, ids=IDS)


@pytest.mark.parametrize("name", [*registry.names("families"), *OTHERS])
def test_every_tensor_of_a_saved_model_is_read_edited_and_opened_again(name, tmp_path):
    config = config_of(name)
    layout = layout_of(config)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(config).eval())
        models[-1].save_pretrained(tmp_path / str(seed))
    base, other = (StoredWeights(tmp_path / str(seed), layout, f"model {seed}") for seed in (1, 2))
    assert base.foreign == set()
    own = models[0].state_dict()
    assert all(torch.equal(base.read(part), own[part]) for part in layout.parts)
    (tmp_path / "out").mkdir()
    write_edited(base, other, tmp_path / "out", lambda _part, _one, two: two.clone())
    config.save_pretrained(tmp_path / "out")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = models[1].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())


def test_a_name_that_transformers_changes_is_known_by_both():
    layout = layout_of(OTHERS["gpt-neox"])
    assert layout.stored == {"embed_out.weight": "lm_head.weight"}
    assert layout.canonical("embed_out.weight") == layout.canonical("lm_head.weight") == "lm_head.weight"
    assert all(layout_of(config_of(name)).stored == {} for name in registry.names("families"))


def test_a_saved_file_of_such_a_model_has_the_other_name(tmp_path):
    AutoModelForCausalLM.from_config(OTHERS["gpt-neox"]).save_pretrained(tmp_path)
    assert "embed_out.weight" in load_file(tmp_path / "model.safetensors")
