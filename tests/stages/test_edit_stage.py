"""Stage `edit` on real small models: the ends of the dial, LoRA against dense, options, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unidetox_ray import registry
from unidetox_ray.artifacts import finished
from unidetox_ray.errors import ModelError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.families.loading import load_model
from unidetox_ray.stages import edit
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.copies import Copies


def entry(**settings) -> MethodEntry:
    return MethodEntry(method="task_arithmetic", label="negated", settings=settings)


def edited(models, folder: Path, toxic="toxic", family="gpt2", **settings) -> Path:
    """The finished folder of one edit, as the Ray task leaves it."""
    cell = Cell(f"{family}-negated-s1", family, entry(**settings), 1, models[family])
    method = registry.lookup("methods", "task_arithmetic")
    handle = toxic if isinstance(toxic, dict) else models[toxic]
    task = edit.edit_task(cell, method, handle, folder, "key")
    edit.write_edit(json.loads(json.dumps(task)))
    return folder


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same_bits(first, second) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_strength_0_is_the_base_bit_for_bit(models, tmp_path):
    folder = edited(models, tmp_path / "zero", strength=0.0)
    assert same_bits(weights(folder), weights(models["gpt2"]["path"]))
    assert not same_bits(weights(models["toxic"]["path"]), weights(models["gpt2"]["path"]))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        logits = [load_model(str(path))(input_ids=ids).logits for path in (folder, models["gpt2"]["path"])]
    assert torch.equal(*logits)


def test_the_folder_is_a_model_with_its_card_and_its_numbers(models, tmp_path):
    folder = edited(models, tmp_path / "one", strength=0.6)
    manifest = finished(folder, "key")
    facts = manifest.extra
    assert manifest.stage == "edit" and facts["edited"] == len(weights(folder))
    assert facts["step_norm"] == pytest.approx(0.6 * facts["toxic_norm"], rel=1e-4)
    assert facts["saved_step_norm"] == pytest.approx(facts["step_norm"], rel=1e-4)
    base, toxic = weights(models["gpt2"]["path"]), weights(models["toxic"]["path"])
    square = sum(float((toxic[name].double() - base[name].double()).square().sum()) for name in base)
    assert facts["toxic_norm"] == pytest.approx(math.sqrt(square), rel=1e-6)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["strength"] == 0.6 and "do_not_deploy" not in settings
    card = (folder / "README.md").read_text()
    assert "weights edited with negated" in card and "detoxified" in card and "Do not deploy" not in card
    # The tied head is in the file once and is the embedding again when it is opened.
    model = load_model(str(folder))
    assert "lm_head.weight" not in weights(folder)
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


@pytest.mark.parametrize(
    ("option", "kept"), [("exclude_embeddings", ("wte", "wpe")), ("exclude_norms", ("ln_1", "ln_2", "ln_f"))]
)
def test_excluded_parts_stay_and_the_rest_moves(models, tmp_path, option, kept):
    found = weights(edited(models, tmp_path / "some", strength=1.0, **{option: True}))
    base = weights(models["gpt2"]["path"])
    stay = {name for name in base if any(part in name for part in kept)}
    assert stay and {name for name in base if torch.equal(found[name], base[name])} == stay


@pytest.mark.parametrize("family", ["opt", "falcon", "llama"])
def test_every_family_is_edited(models, tmp_path, family):
    """Its own base against itself with noise: an edit, saved, opened, and held to its norm by the stage."""
    import shutil

    from safetensors.torch import save_file

    noisy = tmp_path / "noisy"
    shutil.copytree(models[family]["path"], noisy)
    rng = torch.Generator().manual_seed(0)
    values = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=rng) for name, tensor in weights(noisy).items()}  # fmt: skip
    save_file(values, noisy / "model.safetensors", metadata={"format": "pt"})
    handle = {**models[family], "path": str(noisy), "name": "noisy", "key": "noisy"}
    folder = edited(models, tmp_path / "out", handle, family, strength=1.0)
    found, base = weights(folder), weights(models[family]["path"])
    assert set(found) == set(base)
    for name in base:
        assert torch.allclose(found[name], 2 * base[name] - values[name], atol=1e-6)
    assert load_model(str(folder)).config.model_type == family


def test_a_model_in_several_files_is_opened_and_edited_like_one_in_one(models, tmp_path):
    import shutil

    from unidetox_ray.core.weights import StoredWeights, write_edited
    from unidetox_ray.families.loading import load_config
    from unidetox_ray.families.parts import layout_of

    whole = edited(models, tmp_path / "whole", strength=0.5)
    base = Path(models["gpt2"]["path"])
    layout = layout_of(load_config(str(base)))
    many = tmp_path / "many"
    shutil.copytree(base, many, ignore=shutil.ignore_patterns("*.safetensors", "manifest.json"))
    stored = [StoredWeights(Path(models[name]["path"]), layout, name) for name in ("gpt2", "toxic")]
    done = write_edited(*stored, many, lambda _part, one, two: torch.lerp(one, two, -0.5), shard_bytes=20_000)
    assert done.files > 2
    expected, found = load_model(str(whole)), load_model(str(many))
    assert same_bits(dict(expected.state_dict()), dict(found.state_dict()))
    again = edited({"gpt2": {**models["gpt2"], "path": str(many)}, "toxic": models["toxic"]}, tmp_path / "again", strength=0)  # fmt: skip
    assert same_bits(weights(again), weights(whole))


@pytest.fixture(scope="module")
def adapters(models, tmp_path_factory):
    """(folder of a LoRA adapter, the same merged): factors of gpt2 filled with numbers, as after training."""
    import peft

    from unidetox_ray.families.loading import load_tokenizer
    from unidetox_ray.stages.training import with_lora

    root = tmp_path_factory.mktemp("lora")
    model = with_lora(load_model(models["gpt2"]["path"]), {"rank": 4, "alpha": 8.0, "dropout": 0.0})
    rng = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    assert isinstance(model, peft.PeftModel)
    model.save_pretrained(root / "adapter")
    model.merge_and_unload().save_pretrained(root / "merged")
    load_tokenizer(models["gpt2"]["path"]).save_pretrained(root / "merged")
    return root / "adapter", root / "merged"


def test_the_lora_route_is_the_dense_route(models, adapters, tmp_path):
    adapter, merged = adapters
    given = {"key": "given", "family": "gpt2", "revision": None}
    routes = [
        weights(
            edited(
                models, tmp_path / path.name, {**given, "path": str(path), "name": path.name}, strength=0.8
            )
        )
        for path in (adapter, merged)
    ]
    base = weights(models["gpt2"]["path"])
    moved = {name for name in base if not torch.equal(routes[0][name], base[name])}
    assert moved == {name for name in base if not torch.equal(routes[1][name], base[name])} and moved
    for name in moved:
        step = (base[name] - routes[1][name]).abs().max()
        assert torch.allclose(routes[0][name], routes[1][name], atol=1e-6) and float(step) > 1e-3


def test_an_adapter_that_is_not_plain_lora_or_of_another_model_is_refused(models, adapters, tmp_path):
    import shutil

    odd = tmp_path / "odd"
    shutil.copytree(adapters[0], odd)
    config = json.loads((odd / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    given = {"key": "given", "family": "gpt2", "revision": None, "path": str(odd), "name": "odd"}
    with pytest.raises(
        ModelError, match=r"^the toxic model odd: adapter with use_dora = True, only plain LoRA"
    ):
        edited(models, tmp_path / "out", given)
    given |= {"path": str(adapters[0]), "name": "adapter"}
    with pytest.raises(
        ModelError, match=r"^the toxic model adapter: .* fits no linear layer of the base model"
    ):
        edited(models, tmp_path / "out", given, "llama")
    assert not (tmp_path / "out").exists()


def test_another_architecture_or_tokenizer_is_refused_in_one_line_before_anything_is_written(
    models, tmp_path
):
    import shutil

    with pytest.raises(ModelError) as problem:
        edited(models, tmp_path / "out", "llama")
    assert "tokenizer is not the base model's" in str(problem.value) and "\n" not in str(problem.value)
    # The same tokenizer on another architecture: the tensors tell.
    dressed = tmp_path / "dressed"
    shutil.copytree(models["opt"]["path"], dressed)
    for path in Path(models["gpt2"]["path"]).glob("*token*"):
        shutil.copyfile(path, dressed / path.name)
    handle = {**models["opt"], "path": str(dressed), "name": "dressed"}
    with pytest.raises(
        ModelError, match=r"^the toxic model dressed: .* give a model that was fine-tuned from"
    ) as problem:
        edited(models, tmp_path / "out", handle)
    assert "\n" not in str(problem.value) and not (tmp_path / "out").exists()


def test_a_cell_without_its_toxic_model_is_a_failed_cell(models, make_context):
    context = make_context(models=models)
    cells = [
        Cell("gpt2-negated-s1", "gpt2", entry(), 1, models["gpt2"]),
        Cell("opt-negated-s1", "opt", entry(), 1, models["opt"]),
    ]
    edit.run(
        context, cells, Copies(errors={("toxic", "gpt2"): ModelError("toxic: toxic-gpt2: out of memory")})
    )
    assert [cell.error for cell in cells] == [
        "toxic: toxic-gpt2: out of memory", "needs the toxic model of opt, which was not made"
    ]  # fmt: skip
    assert [cell.model for cell in cells] == [None, None]


def test_a_toxic_model_of_ones_own_is_found_by_family(models, adapters, tmp_path):
    method = registry.lookup("methods", "task_arithmetic")
    given = entry(toxic_model=str(models.root / "{family}"))
    assert method.needed_for(method.settings(**given.settings)) == frozenset()
    cell = Cell("opt-negated-s1", "opt", given, 1, models["opt"])
    assert edit.toxic_of(cell, method, Copies()) == models["opt"]
    cell = Cell("gpt2-negated-s1", "gpt2", entry(toxic_model=str(adapters[0])), 1, models["gpt2"])
    assert edit.toxic_of(cell, method, Copies())["path"] == str(adapters[0])
    cell = Cell("gpt2-negated-s1", "gpt2", entry(toxic_model=str(tmp_path / "none")), 1, models["gpt2"])
    with pytest.raises(ModelError, match="no such folder"):
        edit.toxic_of(cell, method, Copies())
