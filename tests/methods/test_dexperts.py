"""DExperts: the base model's nucleus first, then expert minus anti-expert."""

from __future__ import annotations

import copy

import pytest
import torch

from unidetox_ray.core.decode import decode
from unidetox_ray.core.logits import Mixture, Sampling, in_nucleus
from unidetox_ray.core.steered import SteeredModel
from unidetox_ray.core.steering import Steering
from unidetox_ray.core.streams import uniforms
from unidetox_ray.families.runners import runner_of
from unidetox_ray.methods.dexperts import METHOD


def texts(kit, steering, sampling=None, rows=8, new=8):
    prompts = kit.prompts
    with steering.runners(runner_of) as runners:
        return decode(
            runners, prompts, uniform=uniforms(5, range(len(prompts) * rows), new), max_new_tokens=new, end_ids=[],
            pad_id=kit.ids.pad, mixture=steering.mixture, sampling=sampling or Sampling(), copies=rows,
        )  # fmt: skip


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_the_equation(kit):
    steered = SteeredModel(kit.steering(METHOD, alpha=1.3))
    base, expert, anti = (logits(kit.models[role], kit.prompts[1]) for role in ("base", "expert", "toxic"))
    torch.testing.assert_close(
        logits(steered, kit.prompts[1]), base + 1.3 * (expert - anti), atol=1e-4, rtol=1e-4
    )
    only = SteeredModel(kit.steering(METHOD, alpha=1.3, expert="base"))
    torch.testing.assert_close(logits(only, kit.prompts[1]), 2.3 * base - 1.3 * anti, atol=1e-4, rtol=1e-4)


def test_anti_only_runs_two_models_and_needs_no_expert():
    assert METHOD.needed_for(METHOD.settings()) == {"toxic", "expert"}
    assert METHOD.needed_for(METHOD.settings(expert="base")) == {"toxic"}


def test_without_strength_it_is_the_base_models_nucleus_sampling(kit):
    steering = kit.steering(METHOD, alpha=0, filter_p=0.7)
    base = texts(kit, Steering((kit.base,)), Sampling(top_p=0.7))
    assert texts(kit, steering) == base
    assert base != texts(kit, Steering((kit.base,)))
    # The experiment's own top-p does not cut a second time.
    assert texts(kit, steering, steering.sampling(Sampling(top_p=0.5))) == base


def test_an_expert_equal_to_the_anti_expert_changes_nothing(kit):
    twin = copy.copy(kit)
    twin.models = {**kit.models, "expert": copy.deepcopy(kit.models["toxic"])}
    steering = twin.steering(METHOD)
    assert len(steering.models) == 3
    steered, base = logits(SteeredModel(steering), kit.prompts[1]), logits(kit.base, kit.prompts[1])
    torch.testing.assert_close(steered, base, atol=1e-4, rtol=1e-4)
    assert texts(kit, steering) == texts(kit, kit.steering(METHOD, alpha=0))
    twin.models["expert"] = twin.models["toxic"]  # the very same model is not even run
    assert torch.equal(logits(SteeredModel(twin.steering(METHOD)), kit.prompts[1]), base)


@pytest.mark.parametrize("expert", ["clean", "base"])
def test_no_token_comes_from_outside_the_base_models_nucleus(kit, expert):
    """However strong: sum first and filter then would let the experts lift tokens into the nucleus."""
    steering = kit.steering(METHOD, alpha=20.0, filter_p=0.6, expert=expert)
    lifted = 0
    for row, sequence in enumerate(texts(kit, steering, rows=2)):
        prefix = kit.prompts[row // 2]
        scores = logits(kit.base, [*prefix, *sequence.ids])[len(prefix) - 1 : -1]
        inside = in_nucleus(scores, 0.6)
        assert inside[torch.arange(len(sequence.ids)), torch.tensor(sequence.ids)].all()
        mixed = [logits(model, [*prefix, *sequence.ids])[len(prefix) - 1 : -1] for model in steering.models]
        late = steering.scoring.scores(mixed)
        lifted += int((in_nucleus(late, 0.6) & ~inside).sum())
    assert lifted > 0, "the other order would have passed as well"


def test_the_mixture_says_zero_outside(kit):
    steering = kit.steering(METHOD)
    assert steering.mixture == Mixture((1.0, 2.0, -2.0), nucleus=0.9)
    found = [logits(model, kit.prompts[1]) for model in steering.models]
    probability = steering.mixture.scores(found).softmax(-1)
    inside = in_nucleus(found[0], 0.9)
    assert (probability[~inside] == 0).all() and (~inside).any()
    torch.testing.assert_close(probability[inside].sum(), torch.tensor(float(len(kit.prompts[1]))))


def test_it_moves_away_from_the_anti_expert_and_the_other_way_with_a_negative_strength(kit):
    """Mean of log p_toxic - log p_expert per token of what is drawn."""

    def leaning(alpha):
        total, count = 0.0, 0
        for row, sequence in enumerate(texts(kit, kit.steering(METHOD, alpha=alpha), rows=12)):
            whole, start = [*kit.prompts[row // 12], *sequence.ids], len(kit.prompts[row // 12])
            for role, sign in (("toxic", 1), ("expert", -1)):
                logp = logits(kit.models[role], whole).log_softmax(-1)
                total += sign * sum(
                    float(logp[place - 1, whole[place]]) for place in range(start, len(whole))
                )
            count += len(sequence.ids)
        return total / count

    assert leaning(2.0) < leaning(0.0) - 0.05 < leaning(-2.0) - 0.1
