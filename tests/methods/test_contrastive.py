"""Contrastive decoding against the toxic model: UniDetox's sampler, used on prompts."""

from __future__ import annotations

import math

import pytest
import torch

from unidetox_ray.core.decode import decode
from unidetox_ray.core.logits import PLAIN, Mixture, contrastive, plausible
from unidetox_ray.core.steered import SteeredModel
from unidetox_ray.core.steering import Steering
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.runners import runner_of
from unidetox_ray.methods.contrastive import METHOD


def texts(kit, models, mixture, rows=8, new=8):
    return decode(
        [runner_of(model) for model in models], kit.prompts, uniform=uniforms(5, range(len(kit.prompts) * rows), new),
        max_new_tokens=new, end_ids=[], pad_id=kit.ids.pad, mixture=mixture, copies=rows,
    )  # fmt: skip


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_by_default_it_is_unidetoxs_sampler(kit):
    steering = kit.steering(METHOD)
    base, toxic = kit.models["base"], kit.models["toxic"]
    assert steering.models == (base, toxic) and steering.mixture == Mixture((1.0, -1.0), alpha=0.1)
    assert texts(kit, steering.models, steering.mixture) == texts(
        kit, [base, toxic], contrastive(alpha=0.1, beta=math.inf)
    )


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_equation(kit, beta):
    steered = SteeredModel(kit.steering(METHOD, beta=beta))
    base, toxic = (logits(kit.models[role], kit.prompts[1]) for role in ("base", "toxic"))
    torch.testing.assert_close(
        logits(steered, kit.prompts[1]), (1 + beta) * base - beta * toxic, atol=1e-4, rtol=1e-4
    )


def test_without_contrast_there_is_no_plausible_set_either(kit):
    steering = kit.steering(METHOD, beta=0.0, alpha=0.9)
    assert steering == Steering((kit.base,), PLAIN)
    assert texts(kit, steering.models, steering.mixture) == texts(kit, [kit.base], PLAIN)


@pytest.mark.parametrize("beta", [1.0, math.inf])
def test_no_token_comes_from_outside_the_plausible_set(kit, beta):
    steering = kit.steering(METHOD, alpha=0.5, beta=beta)
    for row, sequence in enumerate(texts(kit, steering.models, steering.mixture, rows=2)):
        prefix = kit.prompts[row // 2]
        inside = plausible(logits(kit.base, [*prefix, *sequence.ids])[len(prefix) - 1 : -1], 0.5)
        assert inside[torch.arange(len(sequence.ids)), torch.tensor(sequence.ids)].all()
    found = [logits(model, kit.prompts[1]) for model in steering.models]
    probability = steering.mixture.scores(found).softmax(-1)
    outside = ~plausible(found[0], 0.5)
    assert outside.any() and (probability[outside] == 0).all() and probability.isfinite().all()


def test_a_toxic_model_equal_to_the_base_leaves_the_base_model(kit):
    """At a finite beta; at infinity nothing of either is left, and every plausible token is as likely."""
    same = METHOD.steering(
        METHOD.settings(beta=3.0), {"base": kit.base, "toxic": kit.base}, kit.tokenizers, None
    )
    assert torch.equal(logits(SteeredModel(same), kit.prompts[1]), logits(kit.base, kit.prompts[1]))


def test_more_contrast_leans_further_away_from_the_toxic_model(kit):
    def leaning(beta):
        steering = kit.steering(METHOD, beta=beta, alpha=0.1)
        total, count = 0.0, 0
        for row, sequence in enumerate(texts(kit, steering.models, steering.mixture, rows=12)):
            whole, start = [*kit.prompts[row // 12], *sequence.ids], len(kit.prompts[row // 12])
            for role, sign in (("toxic", 1), ("base", -1)):
                logp = logits(kit.models[role], whole).log_softmax(-1)
                total += sign * sum(
                    float(logp[place - 1, whole[place]]) for place in range(start, len(whole))
                )
            count += len(sequence.ids)
        return total / count

    assert leaning(3.0) < leaning(0.0) - 0.05


def test_infinity_survives_a_settings_round_trip_as_plain_values():
    for written in ("inf", math.inf):
        assert METHOD.settings.model_validate({"beta": written}).beta == math.inf
    assert METHOD.settings.model_validate(METHOD.settings().model_dump(mode="json")).beta == math.inf
