"""Opening the model of a cell: one Hugging Face model, or several of them and what steers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: What of a handle says which model it is; its name and key do not open anything.
_IDENTITY = ("path", "revision", "steer")


class OpenModel:
    """The model of the cell in hand; orders come cell by cell, so each is loaded once per actor.

    A handle may name what steers its model: {"path", "revision", "steer": {"method": registered name, "settings": plain
    values, "models": {role: handle}, "fit": folder or None}}. Its model is then a `core.steered.SteeredModel`.
    """

    def __init__(self, device: str, precision: str) -> None:
        self.device, self.dtype = device, {"fp32": "float32", "bf16": "bfloat16"}[precision]
        self.opened: dict[str, Any] | None = None
        self.model: Any = None
        self.tokenizer: Any = None

    def open(self, handle: dict[str, Any]) -> tuple[Any, Any]:
        """(model in evaluation mode, tokenizer). ModelError: cannot be opened, or its models do not fit together."""
        wanted = {name: handle.get(name) for name in _IDENTITY}
        if wanted != self.opened:
            self.close()  # two large models do not fit side by side
            steer = wanted["steer"]
            self.model, self.tokenizer = self._load(handle) if steer is None else self._steered(handle, steer)
            self.opened = wanted
        return self.model, self.tokenizer

    def close(self) -> None:
        """Let go of the models, all that steer included."""
        if self.model is not None:
            # They know their models, which would otherwise outlive their last user.
            forget_runners(self.model)
        self.model = self.tokenizer = self.opened = None

    def _load(self, handle: dict[str, Any]) -> tuple[Any, Any]:
        from unidetox_ray.families.loading import load_model, load_tokenizer

        path, revision = handle["path"], handle.get("revision")
        tokenizer = load_tokenizer(path, revision=revision)
        return load_model(path, dtype=self.dtype, device=self.device, revision=revision).eval(), tokenizer

    def _steered(self, handle: dict[str, Any], steer: dict[str, Any]) -> tuple[Any, Any]:
        from unidetox_ray import registry
        from unidetox_ray.core.steered import SteeredModel
        from unidetox_ray.methods.base import DecodingMethod

        method: DecodingMethod = registry.lookup("methods", steer["method"])
        roles = {"base": handle, **{role: made for role, made in steer["models"].items() if role != "base"}}
        loaded: dict[Any, tuple[Any, Any]] = {}
        opened = {}
        for role, made in roles.items():
            place = (made["path"], made.get("revision"))
            if place not in loaded:  # roles that one folder plays share its weights
                loaded[place] = self._load(made)
            opened[role] = loaded[place]
        fit = Path(steer["fit"]) if steer.get("fit") else None
        steering = method.steering(
            method.settings.model_validate(steer["settings"]),
            {role: model for role, (model, _) in opened.items()},
            {role: tokenizer for role, (_, tokenizer) in opened.items()},
            fit,
        )
        return SteeredModel(steering), opened["base"][1]


def weight_bytes(model: Any) -> dict[str, int | None]:
    """What decoding keeps in memory: `weight_bytes` of the model itself (of the base model where it is steered), and
    `extra_bytes` of what steers it (null where nothing does)."""
    steering = getattr(model, "steering", None)
    first = model if steering is None else steering.models[0]
    return {
        "weight_bytes": sum(weight.nbytes for weight in first.parameters()),  # tied weights come once
        "extra_bytes": None if steering is None else steering.extra_bytes(),
    }


def forget_runners(model: Any) -> None:
    """Let go of the runners of a model, or of all the models of a steered one."""
    from unidetox_ray.families.runners import forget_runner

    steering = getattr(model, "steering", None)
    for each in (model,) if steering is None else steering.all_models:
        forget_runner(each)
