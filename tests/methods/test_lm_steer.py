"""lm_steer's own tests: the equation, its signs, its training, and which fits it takes."""

from __future__ import annotations

import copy
import json
import re
import shutil

import polars as pl
import pytest
import torch
from decoding_models import SMALL_FITS, SPEC
from safetensors.torch import load_file

from unidetox_ray import registry
from unidetox_ray.core.loop import LoopSettings, PlainStepper, train
from unidetox_ray.core.steered import SteeredModel
from unidetox_ray.core.steering import Steering
from unidetox_ray.data.world import INSULT_WORDS, World
from unidetox_ray.errors import DataError, ModelError, StageError
from unidetox_ray.families.loading import special_ids
from unidetox_ray.families.scratch import build_model, pack
from unidetox_ray.families.tokenizers import train_tokenizer
from unidetox_ray.methods import lm_steer
from unidetox_ray.methods.base import FitTexts

METHOD = registry.lookup("methods", "lm_steer")
EPSILON = SMALL_FITS["epsilon"]


def logits_of(steering: Steering, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return SteeredModel(steering)(ids).logits


def ids_of(kit) -> torch.Tensor:
    return torch.tensor([kit.prompts[1]])


def fitted(kit, folder, texts=None, model=None, seed=0, **settings):
    """(settings, facts) of a fit in `folder`."""
    chosen = kit.settings(METHOD, **settings)
    folder.mkdir(exist_ok=True)
    given = kit.texts if texts is None else texts
    return chosen, METHOD.fit(model or kit.base, kit.tokenizers["base"], given, chosen, folder, "cpu", seed)


#: Where one family is enough.
only_gpt2 = pytest.mark.parametrize("kit", ["gpt2"], indirect=True)


@pytest.mark.parametrize("rank", [8, 24, None])
def test_the_hook_is_the_head_with_the_steer_folded_in(kit, rank):
    """z' = h (I + eps s W) E^T, so E' = E (I + eps s W)^T, on a copy whose embeddings are not tied."""
    steering = kit.steering(METHOD, rank=rank, strength=3.0)
    folder = kit.fit(METHOD, kit.settings(METHOD, rank=rank))
    matrix = lm_steer.load(folder, kit.base, kit.settings(METHOD, rank=rank))["steer"].dense()
    folded = copy.deepcopy(kit.base)
    head = folded.get_output_embeddings()
    inputs = folded.get_input_embeddings().weight.detach().clone()
    head.weight = torch.nn.Parameter(
        head.weight.detach() @ (torch.eye(len(matrix)) + 3.0 * EPSILON * matrix).T
    )
    with torch.inference_mode():
        expected = folded(input_ids=ids_of(kit)).logits
        plain = kit.base(input_ids=ids_of(kit)).logits
    found = logits_of(steering, ids_of(kit))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert float((found - plain).abs().max()) > 0.1
    assert torch.equal(folded.get_input_embeddings().weight, inputs)


def test_the_other_sign_moves_the_logits_the_other_way(kit):
    base = logits_of(Steering((kit.base,)), ids_of(kit))
    up, down = (logits_of(kit.steering(METHOD, strength=s), ids_of(kit)) - base for s in (2.0, -2.0))
    torch.testing.assert_close(up, -down, atol=1e-3, rtol=1e-3)
    assert float(up.abs().max()) > 0.1


@pytest.fixture(scope="module")
def reader():
    """(model, tokenizer) that read enough of the world to expect insults where they stand."""
    family = registry.lookup("families", "gpt2")
    texts = World(0).pretrain(400)["text"].to_list()
    tokenizer = train_tokenizer(family, texts, 500)
    model = build_model(family, tokenizer, SPEC.model_copy(update={"layers": 1}))
    ids = special_ids(tokenizer, model.config)
    settings = LoopSettings(steps=60, lr=1e-2, batch_size=16)
    train(PlainStepper(model, settings), pack(tokenizer, texts, ids, length=32), ids.pad, settings)
    return model.eval(), tokenizer


def insult_likelihood(steering, tokenizer) -> float:
    """Mean log-likelihood of the tokens of insulting words in toxic texts that no fit has seen."""
    found = []
    for text in World(0).toxic(160)["text"].to_list()[120:]:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([read["input_ids"][:60]])
        scores = logits_of(steering, ids)[0].log_softmax(-1)
        spans = [match.span() for word in INSULT_WORDS for match in re.finditer(rf"\b{word}\b", text)]
        for place, (first, last) in enumerate(read["offset_mapping"][: ids.shape[1]]):
            inside = any(
                first >= start - 1 and last <= end for start, end in spans
            )  # its space may belong to it
            if place and inside:
                found.append(scores[place - 1, ids[0, place]].item())
    assert len(found) > 40
    return sum(found) / len(found)


def test_insults_become_unlikely_and_with_the_labels_swapped_likely(reader, tmp_path):
    model, tokenizer = reader
    toxic = World(0).toxic(120)["text"].to_list()
    clean = World(0).clean().filter(pl.col("split") == "train")["text"].to_list()[:120]
    base = insult_likelihood(Steering((model,)), tokenizer)
    given = {"rank": 8, "epsilon": 0.05, "steps": 80, "batch_size": 16, "max_length": 48}
    moved = {}
    for name, texts in (("right", FitTexts(toxic, clean)), ("swapped", FitTexts(clean, toxic))):
        (tmp_path / name).mkdir()
        METHOD.fit(model, tokenizer, texts, METHOD.settings.model_validate(given), tmp_path / name, "cpu", 0)
        for strength in (3.0, -3.0):
            settings = METHOD.settings.model_validate({**given, "strength": strength})
            steering = METHOD.steering(settings, {"base": model}, {}, tmp_path / name)
            moved[name, strength] = insult_likelihood(steering, tokenizer) - base
    assert moved["right", 3.0] < -0.1 and moved["swapped", -3.0] < -0.1, moved
    assert moved["right", -3.0] > 0.05 and moved["swapped", 3.0] > 0.05, moved


@only_gpt2
def test_the_dummy_steer_stays_out_unless_it_is_asked_for(kit, tmp_path):
    texts = World(0).clean()["text"].to_list()[:40]
    alike = FitTexts(toxic=texts, clean=texts)
    _, facts = fitted(kit, tmp_path / "alike", alike, steps=80, rank=None)
    # Nothing tells the two kinds apart: all there is to learn they have in common.
    assert facts["dummy_norm"] > 2 * facts["norm"]
    without, with_dummy = (
        logits_of(
            METHOD.steering(kit.settings(METHOD, steps=80, rank=None, dummy_value=value), {"base": kit.base}, {}, tmp_path / "alike"),
            ids_of(kit),
        )
        for value in (0, 1)
    )  # fmt: skip
    assert float((without - with_dummy).abs().max()) > 0.05
    _, alone = fitted(kit, tmp_path / "alone", dummy=False, rank=None)
    assert alone["trainable_parameters"] == 32 * 32 and alone["dummy_norm"] is None
    assert facts["trainable_parameters"] == 2 * 32 * 32
    with pytest.raises(ValueError, match="dummy_value: 1 needs dummy: true"):
        METHOD.settings.model_validate({"dummy": False, "dummy_value": 1})


@only_gpt2
def test_at_strength_0_no_fit_is_needed_or_looked_at(kit):
    settings = METHOD.settings.model_validate({"strength": 0, "dummy_value": 1})
    assert METHOD.needed_for(settings) == frozenset()
    assert METHOD.needed_for(METHOD.settings()) == {"fit"}
    assert METHOD.steering(settings, {"base": kit.base}, {}, None).hooks == ()


@only_gpt2
def test_memory_counts_what_the_hook_holds(kit):
    # Two factors of rank 8 are less than a full matrix of width 32, of rank 24 more.
    assert kit.steering(METHOD, rank=8).extra_bytes() == 2 * 8 * 32 * 4
    assert kit.steering(METHOD, rank=24).extra_bytes() == 32 * 32 * 4
    # With the dummy steer there are two of them.
    assert kit.steering(METHOD, rank=8, dummy_value=1).extra_bytes() == 32 * 32 * 4


@only_gpt2
def test_the_facts_add_up_and_a_wasteful_rank_is_said(kit, tmp_path):
    settings, facts = fitted(kit, tmp_path / "low", rank=8)
    assert facts["trainable_parameters"] == 2 * 2 * 32 * 8 and "note" not in facts
    stored = load_file(tmp_path / "low" / "steer.safetensors")
    assert sorted(stored) == ["dummy.projector1", "dummy.projector2", "steer.projector1", "steer.projector2"]
    norm = float((stored["steer.projector1"] @ stored["steer.projector2"].T).norm())
    assert facts["norm"] == pytest.approx(norm, rel=1e-5)
    assert facts["step_norm"] == pytest.approx(EPSILON * norm, rel=1e-5)
    assert METHOD.told(settings, facts) == {"steer_norm": pytest.approx(5 * EPSILON * norm, rel=1e-5)}
    assert facts["final_loss"] < facts["first_loss"]
    _, wasteful = fitted(kit, tmp_path / "high", rank=17, steps=1)
    assert "hold 2176 numbers, the full matrix 2048; rank: null" in wasteful["note"]
    _, full = fitted(kit, tmp_path / "full", rank=None, steps=1)
    assert "note" not in full and full["trainable_parameters"] == 2048


@only_gpt2
def test_a_bf16_model_is_steered_in_fp32_and_stays_as_it_was(kit, tmp_path):
    model = copy.deepcopy(kit.base).to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings, facts = fitted(kit, tmp_path / "half", model=model)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "steer.safetensors").values()} == {
        torch.float32
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in model.parameters())
    # As good a fit as the float32 model's, up to the model's own rounding.
    _, exact = fitted(kit, tmp_path / "exact")
    assert facts["final_loss"] == pytest.approx(exact["final_loss"], rel=0.02)
    # The weights are those of the float32 model, rounded: each one's fit opens on the other.
    for base in (model, kit.base):
        steering = METHOD.steering(settings, {"base": base}, {}, tmp_path / "half")
        found = logits_of(steering, ids_of(kit)).float()
        plain = logits_of(Steering((base,)), ids_of(kit)).float()
        assert bool(found.isfinite().all()) and float((found - plain).abs().max()) > 0.1


@only_gpt2
def test_fits_of_other_weights_or_settings_are_refused_in_one_line(kit):
    settings = kit.settings(METHOD)
    folder = kit.fit(METHOD, settings)
    with pytest.raises(ModelError, match="was made on other weights than this model's") as error:
        METHOD.steering(settings, {"base": kit.models["toxic"]}, {}, folder)
    assert "\n" not in str(error.value)
    other = kit.settings(METHOD, epsilon=0.1)
    with pytest.raises(ModelError, match=r"was made with epsilon 0\.05, the settings say 0\.1"):
        METHOD.steering(other, {"base": kit.base}, {}, folder)
    family, tokenizer = registry.lookup("families", "gpt2"), kit.tokenizers["base"]
    wide = build_model(family, tokenizer, SPEC.model_copy(update={"hidden": 48}))
    with pytest.raises(ModelError, match=r"is of hidden size 32 and the model of 48; make the fit"):
        METHOD.steering(settings, {"base": wide}, {}, folder)
    with pytest.raises(ModelError, match="no fit is given"):
        METHOD.steering(settings, {"base": kit.base}, {}, None)


@only_gpt2
def test_a_damaged_fit_is_refused_in_one_line(kit, tmp_path):
    settings = kit.settings(METHOD)
    folder = tmp_path / "broken"
    shutil.copytree(kit.fit(METHOD, settings), folder)
    weights = folder / "steer.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"steer\.safetensors cannot be read") as error:
        METHOD.steering(settings, {"base": kit.base}, {}, folder)
    assert "\n" not in str(error.value)


@only_gpt2
def test_what_the_seed_decides(kit, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        fitted(kit, tmp_path / name, seed=seed, steps=3)
    one, two = (load_file(tmp_path / name / "steer.safetensors") for name in ("one", "two"))
    assert not torch.equal(one["steer.projector1"], two["steer.projector1"])
    assert json.loads((tmp_path / "two" / "steer.json").read_text())["seed"] == 2


@only_gpt2
def test_both_kinds_get_as_many_texts_and_neither_may_lack(kit, tmp_path):
    few = FitTexts(toxic=kit.texts.toxic[:7], clean=["", *kit.texts.clean])
    _, facts = fitted(kit, tmp_path / "few", few, steps=2)
    assert facts["texts_per_kind"] == 7
    with pytest.raises(DataError, match=r"^data\.clean: none of its 1 training texts has two tokens"):
        fitted(kit, tmp_path / "none", FitTexts(toxic=kit.texts.toxic, clean=[""]), steps=2)


@only_gpt2
def test_training_that_diverges_is_an_error_and_no_fit(kit, tmp_path):
    with pytest.raises(StageError, match="lower lr") as error:
        fitted(kit, tmp_path / "wild", lr=1e25, steps=5)
    assert "\n" not in str(error.value) and list((tmp_path / "wild").iterdir()) == []
