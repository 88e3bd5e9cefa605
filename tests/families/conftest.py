"""Small untrained models and trained tokenizers of every registered family, made once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from unidetox_ray import registry
from unidetox_ray.data.world import World
from unidetox_ray.families.base import Family
from unidetox_ray.families.loading import special_ids
from unidetox_ray.families.scratch import build_model
from unidetox_ray.families.tokenizers import train_tokenizer
from unidetox_ray.settings import ScratchSection

SPEC = ScratchSection(hidden=32, layers=2, heads=2, max_positions=64, seed=5)


@dataclass(frozen=True)
class Tiny:
    family: Family
    tokenizer: Any
    model: Any
    ids: Any


@pytest.fixture(scope="session")
def world_texts() -> list[str]:
    return World(0).pretrain(400)["text"].to_list()


@pytest.fixture(scope="session", params=registry.names("families"))
def tiny(request, world_texts) -> Tiny:
    family = registry.lookup("families", request.param)
    tokenizer = train_tokenizer(family, world_texts, 400)
    model = build_model(family, tokenizer, SPEC).eval()
    return Tiny(family, tokenizer, model, special_ids(tokenizer, model.config))
