"""Stage `fits`: what the `fit` of a decoding method makes, one Ray task per family and distinct fit.

A fit learns from the training parts of data.toxic and data.clean. It is keyed by the base model, both data sets, the seed and
the settings that its method names in `fit_settings`: entries that differ in others alone, in a strength above all, share one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from unidetox_ray.artifacts import (
    Manifest,
    finished,
    key_for,
    private_folder,
    write_json,
    write_manifest,
    write_parquet,
)
from unidetox_ray.errors import DataError, StageError, UnidetoxError
from unidetox_ray.experiment import checked
from unidetox_ray.hashing import digest
from unidetox_ray.methods.base import DecodingMethod, FitTexts
from unidetox_ray.settings import Section
from unidetox_ray.stages import held
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.needs import method_of
from unidetox_ray.stages.tasks import Task, run_tasks

#: The data that fits learn from.
ROLES = ("toxic", "clean")

K = TypeVar("K")


@dataclass(frozen=True)
class Want:
    """A fit that somebody needs: the method with these settings on a family's base model."""

    method: DecodingMethod
    settings: Section
    base: Handle


@dataclass(frozen=True)
class Fitted:
    """A finished fit. folder: what the method's `steering` is given. manifest.extra: `trainable_parameters`, `fit_seconds`
    and whatever facts the method's `fit` returns."""

    folder: Path
    key: str
    manifest: Manifest


def run(
    context: Context, cells: Sequence[Cell], bases: Mapping[str, Handle]
) -> dict[tuple[str, str], Fitted | UnidetoxError]:
    """By (label, family), the fit of every cell whose method needs one, or why it could not be made."""
    wants: dict[tuple[str, str], Want] = {}
    for cell in cells:
        method = method_of(cell.method)
        if not isinstance(method, DecodingMethod) or cell.error is not None:
            continue
        settings = checked(cell.method)
        if "fit" in method.needed_for(settings):
            wants[cell.method.label, cell.family] = Want(method, settings, bases[cell.family])
    return make(context, wants)


def make(context: Context, wants: Mapping[K, Want]) -> dict[K, Fitted | UnidetoxError]:
    """The fit of every want, each distinct one made once; an error stands for those that wanted it and for no other."""
    if not wants:
        return {}
    started = time.perf_counter()
    tasks = {name: _task(context, want) for name, want in wants.items()}
    distinct = {task["key"]: task for task in tasks.values()}
    missing = [task for task in distinct.values() if finished(Path(task["folder"]), task["key"]) is None]
    errors = _fit_all(context, missing) if missing else {}
    found: dict[K, Fitted | UnidetoxError] = {}
    for name, task in tasks.items():
        manifest = finished(Path(task["folder"]), task["key"])
        if manifest is None:
            found[name] = errors.get(task["key"]) or StageError(
                f"fits: {task['name']}: the fit left no result"
            )
        else:
            found[name] = Fitted(Path(task["folder"]), task["key"], manifest)
    for note in dict.fromkeys(
        f"{fitted.manifest.extra['name']}: {fitted.manifest.extra['note']}"
        for fitted in found.values()
        if isinstance(fitted, Fitted) and fitted.manifest.extra.get("note")
    ):
        context.display.say(note)
    context.record(
        "fits", digest(sorted(distinct))[:16], time.perf_counter() - started, reused=not missing, processes=max(1, len(missing)),
        devices=held.by_actors(context, len(missing)), partial=len(missing) < len(distinct),
    )  # fmt: skip
    return found


def _task(context: Context, want: Want) -> dict[str, Any]:
    """The fit as plain values."""
    experiment, method = context.experiment, want.method
    # No others reach the fit, so that it cannot depend on what its key leaves out.
    settings = want.settings.model_dump(mode="json", include=set(method.fit_settings))
    family = want.base["family"]
    config = {
        "method": method.name, "family": family, "seed": experiment.all_seeds[0], "limit": experiment.limit,
        "precision": experiment.evaluate.precision, "settings": settings,
    }  # fmt: skip
    data = {role: context.data(role, getattr(experiment.data, role)).sha256 for role in ROLES}
    inputs = {"model": want.base["key"], **data}
    key = key_for("fits", config, inputs)
    name = f"{method.name}-{family}"
    return {
        "name": name, "method": method.name, "family": family, "base": want.base, "key": key,
        "folder": str(context.folder.model(f"fit-{name}", key)), "config": config, "inputs": inputs, "threads": experiment.cluster.threads,
    }  # fmt: skip


def _texts(context: Context) -> dict[str, str]:
    """Files with the training part of each role, by role."""
    files = {}
    for role in ROLES:
        loaded = context.data(role, getattr(context.experiment.data, role))
        table = context.limited(loaded.table.filter(pl.col("split") == "train")).select("text")
        if table.height == 0:
            raise DataError(
                f"data.{role}: holds no text in split 'train', which methods with a fit learn from"
            )
        path = context.folder.root / "stages" / f"fit-texts-{role}-{loaded.sha256[:16]}.parquet"
        write_parquet(path, table)
        files[role] = str(path)
    return files


def _fit_all(context: Context, tasks: Sequence[dict[str, Any]]) -> dict[str, UnidetoxError]:
    """Errors by key."""
    texts = _texts(context)
    context.connect()
    from unidetox_ray.stages.cluster import gpus_per_actor

    errors: dict[str, UnidetoxError] = {}

    def failed(task: Task, text: str, kind: type[UnidetoxError]) -> None:
        errors[task["key"]] = kind(f"fits: {task['name']}: {text}")

    run_tasks(
        context, fit_model, [{**task, "texts": texts} for task in tasks], failed,
        label="fitting what steers", unit="fits", gpus=gpus_per_actor(context.experiment.cluster),
    )  # fmt: skip
    for path in texts.values():
        Path(path).unlink(missing_ok=True)
    return errors


def fit_model(task_text: str) -> None:
    """Ray task: make one fit and leave its finished folder."""
    from unidetox_ray.stages.cluster import prepare_process

    task = json.loads(task_text)
    write_fit(task, prepare_process(task["threads"]))


def write_fit(task: dict[str, Any], device: str) -> Manifest:
    """The finished folder of one fit. task: from `_task`, with the files of its texts."""
    import torch

    from unidetox_ray import registry
    from unidetox_ray.families.loading import load_model, load_tokenizer

    started = time.perf_counter()
    method: DecodingMethod = registry.lookup("methods", task["method"])
    if method.fit is None:
        raise StageError(f"{method.name}: needs a fit but its file defines none")
    base, config = task["base"], task["config"]
    settings = method.settings.model_validate(config["settings"])
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[config["precision"]]
    tokenizer = load_tokenizer(base["path"], revision=base.get("revision"))
    model = load_model(base["path"], dtype=dtype, device=device, revision=base.get("revision"))
    texts = FitTexts(
        **{role: pl.read_parquet(path)["text"].to_list() for role, path in task["texts"].items()}
    )
    folder = Path(task["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    private_folder(folder)
    torch.manual_seed(config["seed"])
    facts = method.fit(model, tokenizer, texts, settings, folder, device, config["seed"])
    seconds = time.perf_counter() - started
    said = {
        "family": task["family"],
        "method": task["method"],
        "base_model": base["name"],
        **config["settings"],
    }
    write_json(folder / "settings.json", {**said, **facts})
    return write_manifest(
        folder, stage="fits", key=task["key"], seconds=seconds, config=config, inputs=task["inputs"],
        extra={**facts, "name": task["name"], "family": task["family"], "fit_seconds": round(seconds, 3), "device": device},
    )  # fmt: skip
