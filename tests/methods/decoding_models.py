"""What every decoding method gets in the tests: a family's untrained base, a toxic copy and an expert copy of it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unidetox_ray import registry
from unidetox_ray.core.steering import Steering
from unidetox_ray.data.world import World
from unidetox_ray.families.loading import encode, special_ids
from unidetox_ray.families.scratch import build_model
from unidetox_ray.families.tokenizers import train_tokenizer
from unidetox_ray.hashing import digest
from unidetox_ray.methods.base import DecodingMethod, FitTexts
from unidetox_ray.settings import ScratchSection

SPEC = ScratchSection(hidden=32, layers=2, heads=2, max_positions=64, seed=5)
VOCAB = 320
#: Takes the place of a method's own default where its fit knows the setting: these models learn in seconds, in few and
#: therefore large steps.
SMALL_FITS = {"steps": 40, "epochs": 1, "batch_size": 8, "rank": 8, "max_length": 32, "epsilon": 0.05}


@dataclass
class Kit:
    """One family's models and tokenizers by role, prompts of mixed lengths, and what methods fitted here."""

    family: str
    models: dict[str, Any]
    tokenizers: dict[str, Any]
    prompts: list[list[int]]
    ids: Any
    texts: FitTexts
    root: Path
    fits: dict[str, Path] = field(default_factory=dict)

    @property
    def base(self) -> Any:
        return self.models["base"]

    def steering(self, method: DecodingMethod, **settings: Any) -> Steering:
        """The method with these settings over this family's models; its fit is made on first need."""
        chosen = self.settings(method, **settings)
        roles = {"base", *(method.needed_for(chosen) - {"fit"})}
        return method.steering(
            chosen,
            {role: self.models[role] for role in roles},
            {role: self.tokenizers[role] for role in roles},
            self.fit(method, chosen) if "fit" in method.needed_for(chosen) else None,
        )

    def settings(self, method: DecodingMethod, **settings: Any) -> Any:
        """Its settings, those that its fit depends on small."""
        small = {name: value for name, value in SMALL_FITS.items() if name in method.fit_settings}
        return method.settings.model_validate({**small, **settings})

    def fit(self, method: DecodingMethod, settings: Any) -> Path:
        """The folder of its fit, made once for the settings that it depends on."""
        wanted = settings.model_dump(include=set(method.fit_settings))
        name = f"{self.family}-{method.name}-{digest(wanted)[:8]}"
        if name not in self.fits:
            assert method.fit is not None, f"{method.name} needs a fit and has none"
            folder = self.root / name
            folder.mkdir()
            chosen = method.settings.model_validate(wanted)
            method.fit(self.base, self.tokenizers["base"], self.texts, chosen, folder, "cpu", 0)
            self.fits[name] = folder
        return self.fits[name]


def decoding_methods() -> list[str]:
    """The registered methods of kind `decoding`."""
    return [name for name in registry.names("methods") if registry.lookup("methods", name).kind == "decoding"]


def make_kit(family_name: str, root: Path) -> Kit:
    """Random weights, three times as large as initialised so that mistakes show; the copies differ from them by noise."""
    family = registry.lookup("families", family_name)
    texts = World(0).pretrain(200)["text"].to_list()
    tokenizer = train_tokenizer(family, texts, VOCAB)
    base = build_model(family, tokenizer, SPEC).eval()
    with torch.no_grad():
        for weight in base.parameters():
            weight.mul_(3)
    prompts = [
        encode(tokenizer, text, bos="always")[:length]
        for text, length in zip(texts, (3, 11, 1, 7), strict=False)
    ]
    models = {"base": base, "toxic": _noisy(base, 1), "expert": _noisy(base, 2)}
    fit_texts = FitTexts(toxic=World(0).toxic(40)["text"].to_list(), clean=texts[:40])
    return Kit(
        family_name,
        models,
        dict.fromkeys(models, tokenizer),
        prompts,
        special_ids(tokenizer, base.config),
        fit_texts,
        root,
    )


def with_words_swapped(tokenizer: Any) -> Any:
    """A copy in which the last two words of the vocabulary have each other's id."""
    wrong = copy.deepcopy(tokenizer)
    state = json.loads(wrong.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    one, other = sorted(words, key=words.get)[-2:]
    words[one], words[other] = words[other], words[one]
    wrong._tokenizer = type(wrong.backend_tokenizer).from_str(json.dumps(state))
    return wrong


def _noisy(model: Any, seed: int) -> Any:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.dim() == 2:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2 * weight.std())
    return other
