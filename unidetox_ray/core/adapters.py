"""LoRA adapters read as the model they stand for: theta + s B A, tensor by tensor, without opening that model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unidetox_ray.core.weights import Layout, StoredWeights
from unidetox_ray.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BODY = "base_model.model."


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


class AdaptedWeights:
    """A base model with a LoRA adapter on it (Hu et al. 2021): W + s B A in fp32, s = alpha / r or alpha / sqrt(r).

    Only plain LoRA on linear layers: ModelError, one line, for anything else that a peft folder can hold, as it would
    otherwise be left out of the difference without a word.
    """

    def __init__(self, folder: Path, base: StoredWeights, what: str) -> None:
        self.base, self.what = base, what
        self.layout: Layout = base.layout
        try:
            self._config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            self._file: Any = safe_open(folder / WEIGHTS, framework="pt")  # type: ignore[no-untyped-call]
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                f"{what}: the adapter cannot be read ({str(error)[:120]}); give a folder with {CONFIG} and {WEIGHTS}"
            ) from None
        self._refuse_other_kinds()
        self._pairs: dict[str, dict[str, str]] = {}
        for stored in self._file.keys():  # noqa: SIM118 - a safetensors file is no mapping
            module, _, side = stored.removeprefix(_BODY).removesuffix(".weight").rpartition(".lora_")
            name = self.layout.canonical(f"{module}.weight") if side in ("A", "B") else None
            if name is None:
                raise ModelError(
                    f"{what}: {stored} fits no linear layer of {base.what}; give an adapter that was trained on it"
                )
            self._pairs.setdefault(name, {})[side] = stored
        for name, pair in self._pairs.items():
            if len(pair) != 2:
                raise ModelError(f"{what}: of {name} one factor is missing; copy the adapter's folder again")
            made = self._product(name).shape
            if tuple(made) != base.shape(name):
                raise ModelError(
                    f"{what}: B A for {name} is {list(made)}, in {base.what} {list(base.shape(name))}; "
                    "give an adapter that was trained on it"
                )
        if not self._pairs:
            raise ModelError(f"{what}: the adapter holds no LoRA factor")

    def _refuse_other_kinds(self) -> None:
        config = self._config
        odd = {
            "peft_type": str(config.get("peft_type", "")).upper() != "LORA",
            "use_dora": bool(config.get("use_dora")),
            "bias": config.get("bias", "none") != "none",
            "modules_to_save": bool(config.get("modules_to_save")),
            "rank_pattern": bool(config.get("rank_pattern")),
            "alpha_pattern": bool(config.get("alpha_pattern")),
        }
        for name, refused in odd.items():
            if refused:
                raise ModelError(
                    f"{self.what}: adapter with {name} = {config.get(name)!r}, only plain LoRA on linear layers is read; "
                    "merge it into its base model and give that folder"
                )

    @property
    def scale(self) -> float:
        """s of W + s B A."""
        rank = int(self._config["r"])
        return float(self._config["lora_alpha"]) / (
            math.sqrt(rank) if self._config.get("use_rslora") else rank
        )

    def _product(self, name: str) -> Tensor:
        """s B A in fp32, in the layout of the layer's weight (GPT-2's layers are stored transposed)."""
        pair = self._pairs[name]
        low, high = (self._file.get_tensor(pair[side]).float() for side in ("A", "B"))
        product: Tensor = (high @ low) * self.scale
        return product.T if self._config.get("fan_in_fan_out") else product

    def read(self, name: str) -> Tensor:
        """The merged tensor in fp32; tensors without an adapter as the base has them."""
        tensor = self.base.read(name)
        return tensor if name not in self._pairs else tensor.float() + self._product(name)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self._pairs else self.base.dtype(name)
