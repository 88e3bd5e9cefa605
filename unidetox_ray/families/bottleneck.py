"""Models with bottleneck adapters: where a family's sub-layers end, and the folder that keeps the adapters.

A folder holds the adapters' tensors, the base model's config and tokenizer, and a small JSON that names the base model.
Its weights stay where they are: of a 7B model the adapters are some 30 MB and the weights 13 GB, once for every cell.
So that a folder can never be opened upon other weights, it keeps a fingerprint of them; and so that a run folder can be
moved with its base models, it knows their place relative to itself too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidetox_ray.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "bottleneck.json", "bottleneck.safetensors"
#: Of each weights file, so many pieces of so many bytes, evenly spread: reading 13 GB at each opening would take longer
#: than opening. Other weights of the same shapes differ in nearly every byte.
_PIECES, _BYTES = 16, 1 << 16


def is_bottleneck(folder: str | Path) -> bool:
    return (Path(folder).expanduser() / CONFIG).is_file()


def places_of(model: Any) -> list[str]:
    """Names of the linear layers that end the model's attention and feed-forward sub-layers. ModelError: not known."""
    from unidetox_ray.families.loading import family_of
    from unidetox_ray.families.reached import reached

    patterns = family_of(model.config).sublayers
    named = [
        name
        for name, module in model.named_modules()
        if _width_of(module) and any(re.fullmatch(pattern, name) for pattern in patterns)
    ]
    found = reached(model, named)
    if not found:
        raise ModelError(
            f"model type {model.config.model_type!r}: where its sub-layers end is not known, so no bottleneck adapter "
            "can be put there; name them in its family's `sublayers`, or use adapter: lora"
        )
    return found


def _width_of(module: Any) -> int | None:
    """Outputs of a linear layer; None for anything else. GPT-2's Conv1D calls them nf."""
    width = getattr(module, "out_features", None) or getattr(module, "nf", None)
    return width if isinstance(width, int) else None


def with_bottlenecks(model: Any, *, size: int, seed: int) -> Any:
    """The model, frozen, with fresh adapters: its logits as before, bit for bit."""
    from unidetox_ray.core.bottleneck import add_bottlenecks

    add_bottlenecks(model, places_of(model), size=size, seed=seed)
    return model


def save(folder: Path, model: Any, state: Mapping[str, Tensor], base: Mapping[str, Any]) -> None:
    """Write the adapters of `model`.

    state: its state dict, on any device, the model's own tensors among it. base: path, revision, key and name of the
    model that was adapted (a handle of the stages).
    """
    from safetensors.torch import save_file

    from unidetox_ray.core.bottleneck import bottleneck_state
    from unidetox_ray.families.loading import local_folder

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bottleneck_state(state).items()}
    places = sorted({name.partition(".bottleneck.")[0] for name in tensors})
    size = next(tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".down.weight"))
    path = Path(base["path"]).expanduser()
    named: dict[str, Any] = {name: base.get(name) for name in ("path", "revision", "key", "name")}
    if path.is_dir():
        named["relative"] = os.path.relpath(path.absolute(), folder.absolute())
    named["fingerprint"] = fingerprint(local_folder(base["path"], base.get("revision")))
    model.config.save_pretrained(folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    value = {"size": int(size), "places": places, "base": named}
    (folder / CONFIG).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def moved(folder: Path, place: Path) -> None:
    """Adjust a folder of adapters that is about to be moved to `place`: where its base model lies, seen from there."""
    value = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if "relative" in value["base"]:
        value["base"]["relative"] = os.path.relpath(Path(value["base"]["path"]).absolute(), place.absolute())
        (folder / CONFIG).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def open_adapted(folder: str | Path, *, dtype: str, device: str) -> Any:
    """The base model with the folder's adapters, in evaluation mode. ModelError, one line, says what does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from unidetox_ray.core.bottleneck import add_bottlenecks, load_bottlenecks
    from unidetox_ray.families.loading import load_model

    place = Path(folder).expanduser()
    try:
        value = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        base, size, places = dict(value["base"]), int(value["size"]), [str(name) for name in value["places"]]
        recorded, stamp = str(base["path"]), str(base["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model {folder}: {CONFIG} cannot be read ({str(error)[:80]}); copy the folder again"
        ) from None
    found = _base_of(place, base, recorded, stamp)
    model = load_model(found, dtype=dtype)
    try:
        add_bottlenecks(model, places, size=size, seed=0)
        load_bottlenecks(model, load_file(place / WEIGHTS))
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise ModelError(
            f"model {folder}: {WEIGHTS} does not fit its base model ({str(error)[:120]}); copy the folder again"
        ) from None
    return model.eval().to(device)


def _base_of(folder: Path, base: Mapping[str, Any], recorded: str, stamp: str) -> str:
    """The base model's folder: the recorded one, else the one at the same place relative to `folder`, else the hub's."""
    from unidetox_ray.families.loading import local_folder

    advice = f"write its place into base.path of {folder / CONFIG}"
    places = [Path(recorded).expanduser(), folder.absolute() / str(base.get("relative") or recorded)]
    candidates = [place for place in places if place.is_dir()]
    if not candidates and (base.get("relative") or recorded.startswith((".", "/", "~"))):
        raise ModelError(
            f"model {folder}: its adapters belong to {base.get('name') or 'a base model'}, which is no longer at "
            f"{recorded}; {advice}"
        )
    candidates = candidates or [local_folder(recorded, base.get("revision"))]
    fitting = [place for place in candidates if fingerprint(place) == stamp]
    if not fitting:
        raise ModelError(
            f"model {folder}: the model at {candidates[0]} has other weights than the one that its adapters were "
            f"trained on ({base.get('name')}); {advice}"
        )
    return str(fitting[0])


def fingerprint(folder: Path) -> str:
    """SHA-256 of the weights files' names and sizes and of pieces of their bytes, without reading them whole."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        found.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as stream:
            for piece in range(_PIECES):
                stream.seek(max(0, (size - _BYTES) * piece // (_PIECES - 1)))
                found.update(stream.read(_BYTES))
    return found.hexdigest()
