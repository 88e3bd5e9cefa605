"""Edits of a model's parameters, streamed: one tensor of each model in memory at a time, from and to safetensors.

A `Layout` says which tensors a model has, under which names, and which of them share memory (`families.parts` makes
it from a config). Files may hold tied tensors twice or once, older names without the model's prefix, and buffers that
are no parameters: reading goes by the layout, so that two files of one architecture can be compared at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unidetox_ray.errors import ModelError

Role = Literal["embedding", "norm", "other"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Bytes of a file of a sharded model, like what `save_pretrained` splits at.
SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class Part:
    """One tensor of a model. embedding: input, output and position embeddings. norm: scales and shifts of norms."""

    name: str
    role: Role = "other"


@dataclass(frozen=True)
class Layout:
    """Every tensor of an architecture once, in the model's order.

    tied: other names of tensors in `parts`, to the name they stand under there. prefix: of the model's body; files of
    the body alone lack it. stored: names that files use in the place of the model's, to the model's.
    """

    parts: Mapping[str, Part]
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    prefix: str = ""
    stored: Mapping[str, str] = field(default_factory=dict)

    def canonical(self, name: str) -> str | None:
        """The name in `parts` of a tensor of a file; None for what is no tensor of this architecture."""
        for candidate in (name, f"{self.prefix}.{name}"):
            known = self.stored.get(candidate, candidate)
            found = self.tied.get(known, known)
            if found in self.parts:
                return found
        return None


class Weights(Protocol):
    """Tensors by canonical name."""

    what: str
    layout: Layout

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype."""
        ...

    def dtype(self, name: str) -> torch.dtype: ...


class StoredWeights:
    """The tensors of a folder: `model.safetensors`, or the files that its index names.

    what: how messages call it. ModelError: no such file, damaged, or not the tensors and shapes of the layout.
    """

    def __init__(self, folder: Path, layout: Layout, what: str) -> None:
        self.folder, self.layout, self.what = folder, layout, what
        self._open: dict[str, Any] = {}
        self._places: dict[str, tuple[str, str]] = {}
        self.foreign: set[str] = set()
        for file, stored in self._stored():
            name = layout.canonical(stored)
            if name is None:
                self.foreign.add(stored)
            elif name not in self._places or stored == name:  # a tied tensor under its own name first
                self._places[name] = (file, stored)
        lacking = [name for name in layout.parts if name not in self._places]
        if lacking:
            raise ModelError(
                f"{what}: lacks {len(lacking)} of its architecture's {len(layout.parts)} tensors "
                f"({', '.join(lacking[:2])}); take weights and config.json from the same model"
            )
        for name, shape in layout.shapes.items():
            if self.shape(name) != shape:
                raise ModelError(
                    f"{what}: {name} is {list(self.shape(name))}, its config says {list(shape)}; "
                    "take weights and config.json from the same model"
                )

    def _stored(self) -> Iterator[tuple[str, str]]:
        """(file, name in it) of every tensor."""
        files = [SINGLE]
        if (self.folder / INDEX).is_file():
            try:
                files = sorted(
                    set(json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
                )
            except (OSError, ValueError, KeyError, AttributeError):
                raise ModelError(
                    f"{self.what}: {INDEX} cannot be read; copy the model's folder again"
                ) from None
        for file in files:
            for name in self._file(file).keys():  # noqa: SIM118 - a safetensors file is no mapping
                yield file, name

    def _file(self, file: str) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt")  # type: ignore[no-untyped-call]
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    f"{self.what}: {file} cannot be read ({str(error)[:120]}); copy the model's folder again"
                ) from None
        return self._open[file]

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._places[name]
        return tuple(self._file(file).get_slice(stored).get_shape())

    def read(self, name: str) -> Tensor:
        file, stored = self._places[name]
        tensor: Tensor = self._file(file).get_tensor(stored)
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        # A slice of nothing carries the dtype and reads no data.
        file, stored = self._places[name]
        found = self._file(file).get_slice(stored)
        return found[:0].dtype if found.get_shape() else self.read(name).dtype


def require_equal(base: StoredWeights, other: StoredWeights) -> None:
    """ModelError unless both hold the same tensors in the same shapes: one architecture, one vocabulary."""
    for name in (*base.layout.parts, *other.layout.parts):
        sizes = [model.layout.shapes.get(name) for model in (base, other)]
        if sizes[0] != sizes[1]:
            found = ["missing" if size is None else "x".join(map(str, size)) or "a scalar" for size in sizes]
            raise ModelError(
                f"{other.what}: {name} is {found[1]}, in {base.what} {found[0]}; "
                f"give a model that was fine-tuned from {base.what} itself"
            )
    if more := sorted(other.foreign - base.foreign):
        raise ModelError(
            f"{other.what}: holds {more[0]}, which {base.what} lacks; give a model that was fine-tuned from it"
        )


@dataclass(frozen=True)
class Edited:
    """What an edit did. Norms are L2 over all edited tensors, in float64, before rounding to the target dtype."""

    edited: int
    copied: int
    parameters: int
    """Numbers in edited tensors, tied ones once."""
    toxic_norm: float
    """Of theta_toxic - theta."""
    step_norm: float
    """Of theta_new - theta."""
    files: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_edited(
    base: Weights,
    toxic: Weights,
    folder: Path,
    edit: Callable[[Part, Tensor, Tensor], Tensor],
    *,
    edits: Callable[[Part], bool] = lambda part: True,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Edited:
    """Write `edit(part, base, toxic)` of every tensor into `folder` as safetensors.

    Floating-point tensors that `edits` accepts are edited: fp32 in, fp32 out, written in `dtype` (None: the base's
    own). Others are copied; integer buffers are copied whatever `edits` says, bit for bit. Tied tensors are edited
    once and written once, so that `from_pretrained` ties them again. More than `shard_bytes`: several files and an
    index. At most one file's tensors are in memory. ModelError: a result is not finite or has another shape.
    """
    parts = base.layout.parts
    plan = _shards(base, dtype, shard_bytes)
    squares = {"toxic": 0.0, "step": 0.0}
    counts = {"edited": 0, "copied": 0, "parameters": 0}
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, names in enumerate(plan, start=1):
        file = SINGLE if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        for name in names:
            original = base.read(name)
            if not original.is_floating_point():
                tensors[name] = original
                counts["copied"] += 1
                continue
            target = dtype or original.dtype
            if not edits(parts[name]):
                tensors[name] = original.to(target)
                counts["copied"] += 1
                continue
            before, other = original.float(), toxic.read(name).float()
            after = edit(parts[name], before, other)
            if after.shape != before.shape:
                raise ModelError(f"{name}: the edit made {list(after.shape)} of {list(before.shape)}")
            stored = after.to(target)
            if not bool(torch.isfinite(stored).all()):
                raise ModelError(f"{base.what}: {name} is not finite after the edit; lower its strength")
            squares["toxic"] += _square(other - before)
            squares["step"] += _square(after - before)
            counts["edited"] += 1
            counts["parameters"] += stored.numel()
            tensors[name] = stored.contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(plan) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Edited(
        **counts, toxic_norm=squares["toxic"] ** 0.5, step_norm=squares["step"] ** 0.5, files=len(plan)
    )


def distance(first: Weights, second: Weights) -> float:
    """L2 norm of the difference of all floating-point tensors, tied ones once; ModelError where one is not finite."""
    squares = 0.0
    for name in first.layout.parts:
        one, two = first.read(name), second.read(name)
        if not one.is_floating_point():
            if not torch.equal(one, two):
                raise ModelError(f"{second.what}: the buffer {name} differs from {first.what}'s")
            continue
        if not bool(torch.isfinite(two).all()):
            raise ModelError(f"{second.what}: {name} holds values that are not finite")
        squares += _square(two.float() - one.float())
    return float(squares**0.5)


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _shards(base: Weights, dtype: torch.dtype | None, shard_bytes: int) -> list[list[str]]:
    """The layout's names, in order, in files of at most `shard_bytes` (a larger tensor is a file of its own)."""
    plan: list[list[str]] = [[]]
    filled = 0
    for name, shape in base.layout.shapes.items():
        stored = base.dtype(name)
        size = (dtype if dtype is not None and stored.is_floating_point else stored).itemsize
        for length in shape:
            size *= length
        if plan[-1] and filled + size > shard_bytes:
            plan.append([])
            filled = 0
        plan[-1].append(name)
        filled += size
    return plan
