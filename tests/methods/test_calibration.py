"""Output-layer fusion with a calibration model: its equation, its own cache, its fit, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from unidetox_ray.core.decode import decode
from unidetox_ray.core.fused import Blend, CapturableFusedRunner, Fusion, with_map
from unidetox_ray.core.lean import LeanRunner
from unidetox_ray.core.steered import SteeredModel
from unidetox_ray.core.steering import Steering
from unidetox_ray.core.streams import uniforms
from unidetox_ray.errors import DataError, ModelError
from unidetox_ray.families.generic import GenericRunner
from unidetox_ray.families.loading import load_model, load_tokenizer
from unidetox_ray.families.runners import runner_of
from unidetox_ray.families.shallow import first_layers
from unidetox_ray.methods.base import FitTexts
from unidetox_ray.methods.calibration import METHOD
from unidetox_ray.metrics.reader import Reader

#: A quick fit that moves the calibration model well away from the layers it starts from.
QUICK = {"layers": 1, "steps": 6, "lr": 5e-3, "batch_size": 16}


@pytest.fixture(scope="module")
def fitted(kit, tmp_path_factory):
    """A function: settings -> (folder, facts), each distinct fit made once."""
    made = {}

    def fit(seed=0, **settings):
        chosen = METHOD.settings(**{**QUICK, **settings})
        key = (seed, *(str(getattr(chosen, name)) for name in sorted(METHOD.fit_settings)))
        if key not in made:
            folder = tmp_path_factory.mktemp("calibration")
            made[key] = (
                folder,
                METHOD.fit(kit.base, kit.tokenizers["base"], kit.texts, chosen, folder, "cpu", seed),
            )
        return made[key]

    return fit


def steering(kit, folder, **settings):
    chosen = METHOD.settings(**{**QUICK, **settings})
    return METHOD.steering(chosen, {"base": kit.base}, {"base": kit.tokenizers["base"]}, folder)


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


def decoded(kit, steering, runner=runner_of, **more):
    with steering.runners(runner) as runners:
        return decode(
            runners, kit.prompts, uniform=uniforms(5, range(len(kit.prompts) * 4), 8), max_new_tokens=8,
            end_ids=[kit.ids.eos], pad_id=kit.ids.pad, mixture=steering.mixture, copies=4, **more,
        )  # fmt: skip


def test_alpha_0_runs_no_second_model_and_is_the_base(kit):
    chosen = METHOD.settings(alpha=0)
    assert METHOD.needed_for(chosen) == frozenset() and METHOD.needed_for(METHOD.settings()) == {"fit"}
    neutral = steering(kit, None, alpha=0)
    assert neutral == Steering((kit.base,)) and neutral.extra_bytes() == 0
    ids = kit.prompts[1]
    assert torch.equal(logits(SteeredModel(neutral), ids), logits(kit.base, ids))
    assert decoded(kit, neutral) == decoded(kit, Steering((kit.base,)))


@pytest.mark.parametrize("alignment", ["contrastive", "least_squares", "none"])
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_the_equation(kit, fitted, alignment, alpha):
    folder, facts = fitted(alignment=alignment)
    ids = kit.prompts[1]
    small = load_model(str(folder))
    mapping = torch.eye(32) if alignment == "none" else mapping_of(folder)
    with torch.inference_mode():
        states = [each.base_model(torch.tensor([ids])).last_hidden_state[0] for each in (small, kit.base)]
        mapped = states[0] @ mapping
        u = mapped if alignment == "none" else torch.nn.LayerNorm(32, elementwise_affine=False)(mapped)
        by_hand = kit.base.get_output_embeddings()(alpha * u + (1 - alpha) * states[1])
    found = logits(SteeredModel(steering(kit, folder, alignment=alignment, alpha=alpha)), ids)
    torch.testing.assert_close(found, by_hand, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, logits(kit.base, ids), atol=0.1)
    assert facts["steps"] == 6 and facts["final_loss"] < facts["first_loss"]


def mapping_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "alignment.safetensors")["mapping"]


@pytest.mark.parametrize("alpha", [0.3, 0.8, 1.0])
def test_the_base_fused_with_itself_is_the_base(kit, fitted, alpha):
    """A = I, the same model untrained, no layer norm."""
    folder, facts = fitted(alignment="none", layers=2, steps=0)
    same = steering(kit, folder, alignment="none", layers=2, steps=0, alpha=alpha)
    assert facts["first_loss"] is None and facts["mapped_norm"] == pytest.approx(facts["base_norm"])
    for prompt in kit.prompts:
        torch.testing.assert_close(
            logits(SteeredModel(same), prompt), logits(kit.base, prompt), atol=2e-4, rtol=1e-4
        )
    assert decoded(kit, same) == decoded(kit, Steering((kit.base,)))


def test_the_calibration_cache_is_as_long_as_the_bases_at_every_step(kit, fitted):
    """With rows that are refilled, copied and end at different lengths."""
    folder, _ = fitted(alignment="least_squares")
    seen = []
    chosen = steering(kit, folder, alignment="least_squares")
    with chosen.runners(runner_of) as runners:
        (both,) = runners
        assert isinstance(both, CapturableFusedRunner)
        assert all(isinstance(part, LeanRunner) for part in both.parts)
        step = both.step

        def watched(tokens):
            made = step(tokens)
            seen.append([part._cache.host[: len(tokens)].tolist() for part in both.parts])
            return made

        both.step = watched
        decode(
            runners, kit.prompts, uniform=uniforms(5, range(len(kit.prompts) * 4), 8), max_new_tokens=8,
            end_ids=[*range(0, 320, 5)], pad_id=kit.ids.pad, mixture=chosen.mixture, copies=4, rows=5,
        )  # fmt: skip
    assert len(seen) > 8 and all(one == other for one, other in seen)
    assert len({tuple(one) for one, _ in seen}) == len(seen)
    assert any(len(set(one)) > 1 for one, _ in seen)


def test_the_bases_own_head_runs_and_the_calibration_models_does_not(kit, fitted):
    folder, _ = fitted()
    chosen = steering(kit, folder)
    (small,) = chosen.companions
    assert small.get_output_embeddings().weight.shape == (32, 32)
    shallow = first_layers(kit.base, 1)
    shared = shallow.get_output_embeddings().weight is shallow.get_input_embeddings().weight
    own_head = 0 if shared else shallow.get_output_embeddings().weight.numel()
    wanted = sum(weight.numel() for weight in shallow.parameters()) - own_head + 32 * 32
    assert chosen.extra_bytes() == 4 * wanted


def test_mixed_runners_and_a_hook_of_ones_own(kit, fitted):
    """The model's own forward reads no row anew, so neither does the pair; a hook sees the fused state."""
    folder, _ = fitted()
    chosen = steering(kit, folder)
    shift = torch.linspace(-1, 1, 32)
    hooked = Steering(chosen.models, chosen.mixture, (lambda hidden: hidden + shift,), chosen.fusions)
    small = chosen.companions[0]
    made = {
        "lean": decoded(kit, hooked),
        "generic": decoded(kit, hooked, GenericRunner),
        "mixed": decoded(
            kit, hooked, lambda model: GenericRunner(model) if model is small else runner_of(model)
        ),
    }
    assert made["lean"] == made["generic"] == made["mixed"] != decoded(kit, chosen)
    ids = kit.prompts[1]
    # The base's hidden state is blended first and shifted then.
    head = kit.base.get_output_embeddings()
    with torch.inference_mode():
        difference = head(shift[None]) - head(torch.zeros(1, 32))
    torch.testing.assert_close(
        logits(SteeredModel(hooked), ids),
        logits(SteeredModel(chosen), ids) + difference,
        atol=1e-3,
        rtol=1e-3,
    )
    assert runner_of(kit.base).on_hidden is None


def test_scoring_shares_prefixes_and_runs_the_head_apart(kit, fitted):
    folder, _ = fitted()
    reader = Reader(SteeredModel(steering(kit, folder)))
    assert reader.splits and reader.shares, reader.why_not


def test_cached_scores_equal_uncached_ones_a_token_at_a_time(kit, fitted):
    folder, _ = fitted()
    steered, ids = SteeredModel(steering(kit, folder)), torch.tensor([kit.prompts[1]])
    cache, found = None, []
    with torch.inference_mode():
        for place in range(ids.shape[1]):
            made = steered(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = made.past_key_values
            found.append(made.logits)
        assert {layer.keys.shape[2] for layer in cache.layers} == {ids.shape[1]}
        assert len(cache.layers) == 3
        torch.testing.assert_close(torch.cat(found, dim=1), steered(ids).logits, atol=1e-3, rtol=1e-3)
        last = steered(ids, logits_to_keep=2).logits
        torch.testing.assert_close(last, steered(ids).logits[:, -2:], atol=1e-4, rtol=1e-4)


def test_the_fit_is_deterministic_and_opens_as_a_model(kit, fitted, tmp_path):
    folder, facts = fitted()
    (tmp_path / "again").mkdir()
    again = METHOD.fit(
        kit.base, kit.tokenizers["base"], kit.texts, METHOD.settings(**QUICK), tmp_path / "again", "cpu", 0
    )
    assert {**again, "seconds": 0} == {**facts, "seconds": 0}
    for name in ("model.safetensors", "alignment.safetensors", "calibration.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    other, _ = fitted(seed=1)
    assert (other / "alignment.safetensors").read_bytes() != (folder / "alignment.safetensors").read_bytes()
    small = load_model(str(folder))
    assert load_tokenizer(str(folder)).get_vocab() == kit.tokenizers["base"].get_vocab()
    assert (
        type(small) is type(kit.base)
        and logits(small, kit.prompts[1]).shape[-1] == kit.base.config.vocab_size
    )
    parameters = sum(weight.numel() for weight in small.parameters()) + 32 * 32
    assert facts["trainable_parameters"] == parameters and facts["layers"] == 1
    assert json.loads(json.dumps(facts)) == facts, "facts are plain values"


def test_the_fit_leaves_the_base_as_it_is(kit, tmp_path):
    before = {name: tensor.clone() for name, tensor in kit.base.state_dict().items()}
    METHOD.fit(kit.base, kit.tokenizers["base"], kit.texts, METHOD.settings(**QUICK), tmp_path, "cpu", 0)
    assert not kit.base.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in kit.base.state_dict().items())


def test_sizes_of_both_states_are_told(kit, fitted):
    _, facts = fitted()
    # Mean 0 and variance 1 in each of 32 dimensions.
    assert facts["normed_norm"] == pytest.approx(32**0.5, rel=1e-2) and facts["base_norm"] > 0
    told = METHOD.told(METHOD.settings(), facts)
    assert told == {"u_norm": facts["normed_norm"], "base_norm": facts["base_norm"]}
    assert METHOD.told(METHOD.settings(layer_norm=False), facts)["u_norm"] == facts["mapped_norm"]
    assert METHOD.told(METHOD.settings(alignment="none"), facts)["u_norm"] == facts["mapped_norm"]
    assert METHOD.told(METHOD.settings(alpha=0), {}) == {}


def test_least_squares_before_the_training_carries_its_effect_over(kit, fitted):
    """A map of the trained states brings them back to the base's; one of the untrained states does not."""
    ids = kit.prompts[1]
    distance = {}
    for on in ("untrained", "trained"):
        folder, facts = fitted(alignment="least_squares", alignment_on=on, layers=2, steps=12)
        assert 0 <= facts["alignment_rest"] < 1
        chosen = steering(
            kit,
            folder,
            alignment="least_squares",
            alignment_on=on,
            layers=2,
            steps=12,
            alpha=1.0,
            layer_norm=False,
        )
        distance[on] = float((logits(SteeredModel(chosen), ids) - logits(kit.base, ids)).norm())
    assert distance["untrained"] > 1.2 * distance["trained"]


def test_a_model_of_ones_own_calibrates(kit, fitted, tmp_path):
    """Another width and depth, the same tokenizer; {family} stands for the name."""
    own, _ = fitted()
    place = tmp_path / f"{kit.family}-own"
    shutil.copytree(own, place)
    settings = {"model": str(tmp_path / "{family}-own"), "steps": 0, "alignment": "least_squares"}
    folder, facts = fitted(**settings)
    assert (
        facts["layers"] == 1
        and (folder / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
    )
    assert len(decoded(kit, steering(kit, folder, **settings))) == 16


def test_another_tokenizer_is_refused_before_anything_is_trained(kit, fitted, tmp_path):
    own, _ = fitted()
    place = tmp_path / "other"
    shutil.copytree(own, place)
    swap_last_tokens(place)
    texts = FitTexts(toxic=[], clean=kit.texts.clean)
    chosen = METHOD.settings(**{**QUICK, "model": str(place)})
    with pytest.raises(
        ModelError, match="the calibration model's tokenizer is not the base model's"
    ) as error:
        METHOD.fit(kit.base, kit.tokenizers["base"], texts, chosen, tmp_path, "cpu", 0)
    assert "\n" not in str(error.value) and not (tmp_path / "alignment.safetensors").exists()
    with pytest.raises(ModelError, match="the calibration model's tokenizer is not the base model's"):
        steering(kit, place)


def swap_last_tokens(folder):
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    words = state["model"]["vocab"]
    one, other = sorted(words, key=words.get)[-2:]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(state), encoding="utf-8")


def test_fits_that_do_not_belong_are_refused(kit, fitted):
    folder, _ = fitted()
    with pytest.raises(ModelError, match="no fit is given"):
        steering(kit, None)
    with pytest.raises(ModelError, match="made with steps 6, the settings say 7"):
        steering(kit, folder, steps=7)
    toxic = {"base": kit.models["toxic"]}
    with pytest.raises(ModelError, match="made on other weights"):
        METHOD.steering(METHOD.settings(**QUICK), toxic, {"base": kit.tokenizers["base"]}, folder)


def test_no_text_and_unequal_widths_are_refused(kit, fitted, tmp_path):
    nothing = FitTexts(toxic=[], clean=["", ""])
    with pytest.raises(DataError, match="none of its 2 training texts has two tokens"):
        METHOD.fit(kit.base, kit.tokenizers["base"], nothing, METHOD.settings(**QUICK), tmp_path, "cpu", 0)
    narrow = narrower(kit, tmp_path / "narrow")
    chosen = METHOD.settings(**{**QUICK, "steps": 1, "model": str(narrow), "alignment": "none"})
    with pytest.raises(ModelError, match="the calibration model has 16, the base 32"):
        METHOD.fit(kit.base, kit.tokenizers["base"], kit.texts, chosen, tmp_path, "cpu", 0)
    for alignment in ("contrastive", "least_squares"):
        settings = {"model": str(narrow), "steps": 1, "alignment": alignment}
        folder, _ = fitted(**settings)
        chosen = steering(kit, folder, **settings)
        assert chosen.companions[0].get_output_embeddings().weight.shape == (32, 16)
        assert decoded(kit, chosen) == decoded(kit, chosen, GenericRunner)


def narrower(kit, folder):
    from unidetox_ray import registry
    from unidetox_ray.families.scratch import build_model
    from unidetox_ray.settings import ScratchSection

    spec = ScratchSection(hidden=16, layers=1, heads=2, max_positions=64, seed=9)
    tokenizer = kit.tokenizers["base"]
    build_model(registry.lookup("families", kit.family), tokenizer, spec).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_caps_its_logits_cannot_lend_its_states():
    from transformers import AutoModelForCausalLM, Gemma2Config

    config = Gemma2Config(
        vocab_size=60, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        num_hidden_layers=2, head_dim=8, final_logit_softcapping=0.5,
    )  # fmt: skip
    with pytest.raises(ModelError, match="scales or caps"):
        with_map(AutoModelForCausalLM.from_config(config).eval(), torch.randn(32, 32))
    with pytest.raises(ModelError, match="starts from 31 values"):
        with_map(AutoModelForCausalLM.from_config(config).eval(), torch.randn(31, 32))


def test_half_precision_is_blended_in_float32(kit):
    hidden, mapped = torch.randn(5, 32).bfloat16(), torch.randn(5, 32).bfloat16()
    for norm in (True, False):
        made = Blend(0.3, norm)(hidden, mapped)
        exact = Blend(0.3, norm)(hidden.float(), mapped.float())
        assert made.dtype == torch.bfloat16 and torch.equal(made, exact.bfloat16())


def test_two_runners_of_one_fusion_are_one_object_and_let_go(kit, fitted):
    folder, _ = fitted()
    chosen = steering(kit, folder)
    with pytest.raises(ValueError, match="1 models, but 2 fusions"):
        Steering(chosen.models, fusions=(*chosen.fusions, None))
    with pytest.raises(ValueError, match="stands twice"):
        Steering(chosen.models, fusions=(Fusion(kit.base, Blend(0.5)),))
    with pytest.raises(RuntimeError, match="stop"), chosen.runners(runner_of):
        raise RuntimeError("stop")
    assert runner_of(kit.base).on_hidden is None
