"""Resumable training state. A checkpoint counts once its marker is there, which is written after every rank has saved."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import write_json
from unidetox_ray.core.loop import Log
from unidetox_ray.errors import StageError

_FOLDER = ".checkpoints"


def _marker(folder: Path) -> Path:
    return folder / _FOLDER / "committed.json"


def _committed(folder: Path, key: str) -> dict[str, Any] | None:
    try:
        values = json.loads(_marker(folder).read_text())
    except (OSError, ValueError):
        return None
    return values if values.get("key") == key else None


def _plain(log: Log) -> dict[str, Any]:
    """JSON knows no NaN: a norm that DeepSpeed did not compute is null."""
    return {**asdict(log), "grad_norm": [norm if math.isfinite(norm) else None for norm in log.grad_norm]}


def save(engine: Any, folder: Path, key: str, step: int, log: Log, seconds: float) -> None:
    """Collective: every rank saves, then rank 0 commits and removes the one before. StageError for weights that are not finite,
    which must not take the place of the last that were."""
    import torch
    import torch.distributed as dist

    for name, weight in engine.module.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise StageError(f"{name} is not finite after step {step}; use a lower lr or more precision")
    place = folder / _FOLDER
    tag = f"step-{step}"
    # DeepSpeed does not keep torch's generator; without it a model with dropout does not replay.
    engine.save_checkpoint(
        str(place), tag=tag, client_state={"rng": torch.get_rng_state()}, save_latest=False
    )
    if dist.is_initialized():
        dist.barrier()
    if not dist.is_initialized() or dist.get_rank() == 0:
        before = _committed(folder, key)
        write_json(
            _marker(folder), {"key": key, "step": step, "tag": tag, "log": _plain(log), "seconds": seconds}
        )
        if before and before["tag"] != tag:
            shutil.rmtree(place / before["tag"], ignore_errors=True)


@contextmanager
def _numbers_only() -> Iterator[None]:
    """DeepSpeed opens its checkpoints as pickles that may hold a program. Within, torch builds tensors, plain containers and the
    three kinds of settings that DeepSpeed's sharded optimisers store, and raises `UnpicklingError` for everything else.
    """
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def restore(engine: Any, folder: Path, key: str, log: Log) -> tuple[int, Log]:
    """(step to start at, log so far): the committed checkpoint of this key, else (0, log)."""
    import torch

    values = _committed(folder, key)
    if values is None:
        return 0, log
    with _numbers_only():
        _, state = engine.load_checkpoint(str(folder / _FOLDER), tag=values["tag"])
    torch.set_rng_state(state["rng"].cpu())
    norms = [math.nan if norm is None else norm for norm in values["log"]["grad_norm"]]
    return int(values["step"]), Log(**{**values["log"], "grad_norm": norms})


def seconds(folder: Path, key: str) -> Iterator[float]:
    """Training seconds that a resumed job had already spent."""
    values = _committed(folder, key)
    if values is not None:
        yield float(values["seconds"])


def clear(folder: Path) -> None:
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
