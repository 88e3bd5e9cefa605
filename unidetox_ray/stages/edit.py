"""Stage `edit`: the models of weights methods, one Ray task per cell, each a folder that `from_pretrained` opens."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import (
    Manifest,
    file_sha256,
    finished,
    key_for,
    private_folder,
    write_json,
    write_manifest,
    write_text,
)
from unidetox_ray.cards import edit_card
from unidetox_ray.errors import ModelError, StageError, UnidetoxError
from unidetox_ray.experiment import checked
from unidetox_ray.hashing import digest
from unidetox_ray.methods.base import WeightsMethod
from unidetox_ray.settings import ModelRef
from unidetox_ray.stages import held
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context, absolute
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.models import Handle, handle_of
from unidetox_ray.stages.needs import method_of
from unidetox_ray.stages.tasks import Task, run_tasks

#: Gap that is accepted between the norm of a saved edit and what the method fixes: fp32 rounding of single values.
_TOLERANCE = 1e-3


def config_of(cell: Cell, method: WeightsMethod) -> dict[str, Any]:
    """What of a cell's edit goes into its key, its inputs apart."""
    settings = checked(cell.method).model_dump(mode="json")
    return {"method": method.name, "settings": settings, "family": cell.family}


def edit_task(cell: Cell, method: WeightsMethod, toxic: Handle, folder: Path, key: str) -> dict[str, Any]:
    """The edit of one cell as plain values."""
    config = config_of(cell, method)
    return {
        "cell": cell.name, "family": cell.family, "method": method.name, "label": cell.method.label, "settings": config["settings"],
        "base": cell.base, "toxic": toxic, "key": key, "folder": str(folder), "config": config, "inputs": inputs_of(cell, toxic),
    }  # fmt: skip


def inputs_of(cell: Cell, toxic: Handle) -> dict[str, str]:
    return {"model": cell.base["key"], "toxic": toxic["key"]}


def run(context: Context, cells: Sequence[Cell], copies: Copies) -> None:
    """Gives every cell of a weights method its model, or its error."""
    started = time.perf_counter()
    tasks: dict[str, dict[str, Any]] = {}
    for cell in cells:
        method = method_of(cell.method)
        if not isinstance(method, WeightsMethod):
            continue
        try:
            toxic = toxic_of(cell, method, copies)
        except UnidetoxError as error:
            cell.error = str(error)
            continue
        key = key_for("edit", config_of(cell, method), inputs_of(cell, toxic))
        tasks[cell.name] = edit_task(cell, method, toxic, context.folder.model(cell.name, key), key)
    if not tasks:
        return
    missing = [task for task in tasks.values() if finished(Path(task["folder"]), task["key"]) is None]
    errors = _edit(context, missing) if missing else {}
    for cell in cells:
        if cell.name not in tasks:
            continue
        task = tasks[cell.name]
        cell.settings = settings_of(task)
        cell.edit = finished(Path(task["folder"]), task["key"])
        if cell.edit is None:
            cell.error = errors.get(cell.name, "the edit left no result")
        else:
            cell.model = {"path": task["folder"], "revision": None, "key": task["key"], "family": cell.family, "name": cell.name}  # fmt: skip
    key = digest(sorted(task["key"] for task in tasks.values()))[:16]
    context.record(
        "edit", key, time.perf_counter() - started, reused=not missing, processes=max(1, len(missing)),
        devices=held.by_tasks(context, len(missing), 0.0), partial=len(missing) < len(tasks),
    )  # fmt: skip


def toxic_of(cell: Cell, method: WeightsMethod, copies: Copies) -> Handle:
    """The toxic model that a cell subtracts: the user's own, else its family's. ModelError, one line, without one."""
    given = method.given(checked(cell.method))
    if given is None:
        return copies.of(["toxic"], cell.family)["toxic"]
    return given_model(given, cell.family)


def given_model(given: str, family: str) -> Handle:
    """The handle of a toxic model of the user's own: a hub id, a model folder, or the folder of a LoRA adapter."""
    from unidetox_ray.core.adapters import CONFIG, WEIGHTS, is_adapter

    place = given.replace("{family}", family)
    folder = Path(place).expanduser()
    if not is_adapter(folder):
        return handle_of(ModelRef(source=place), family)
    files = [folder / CONFIG, folder / WEIGHTS]
    if not files[1].is_file():
        raise ModelError(f"{place}: holds {CONFIG} but no {WEIGHTS}; give the adapter's whole folder")
    key = digest([[path.name, file_sha256(path)] for path in files])[:16]
    return {"path": absolute(place), "revision": None, "key": key, "family": family, "name": folder.name}


def settings_of(task: dict[str, Any]) -> dict[str, Any]:
    """What results, the tracker and settings.json say about an edited cell."""
    return {
        "family": task["family"], "method": task["label"], **task["settings"],
        "base_model": task["base"]["name"], "toxic_model": task["toxic"]["name"], "toxic_key": task["toxic"]["key"],
    }  # fmt: skip


def _edit(context: Context, tasks: list[dict[str, Any]]) -> dict[str, str]:
    """Errors by cell."""
    context.connect()
    errors: dict[str, str] = {}

    def failed(task: Task, text: str, _kind: type[UnidetoxError]) -> None:
        errors[task["cell"]] = f"edit: {text}"

    threads = context.experiment.cluster.threads
    run_tasks(
        context, edit_model, [{**task, "threads": threads} for task in tasks], failed,
        label="editing weights", unit="models",
    )  # fmt: skip
    return errors


def edit_model(task_text: str) -> None:
    """Ray task: write one edited model and leave its finished folder."""
    from unidetox_ray.stages.cluster import prepare_process

    task = json.loads(task_text)
    prepare_process(task["threads"])
    write_edit(task)


def write_edit(task: dict[str, Any]) -> Manifest:
    """The finished folder of one edit; ModelError, one line, when the two models do not fit together."""
    import torch

    from unidetox_ray import registry
    from unidetox_ray.core.adapters import AdaptedWeights, is_adapter
    from unidetox_ray.core.steering import check_agreement
    from unidetox_ray.core.weights import StoredWeights, require_equal, write_edited
    from unidetox_ray.families.loading import load_config, load_tokenizer, local_folder
    from unidetox_ray.families.parts import layout_of

    started = time.perf_counter()
    method: WeightsMethod = registry.lookup("methods", task["method"])
    settings = method.settings.model_validate(task["settings"])
    base_folder, toxic_folder = (
        local_folder(task[role]["path"], task[role].get("revision")) for role in ("base", "toxic")
    )
    config = load_config(str(base_folder))
    base = StoredWeights(base_folder, layout_of(config), f"the base model {task['base']['name']}")
    what = f"the toxic model {task['toxic']['name']}"
    tokenizer = load_tokenizer(str(base_folder))
    if is_adapter(toxic_folder):
        toxic: Any = AdaptedWeights(toxic_folder, base, what)
    else:
        check_agreement({}, {"base": tokenizer, "toxic": load_tokenizer(str(toxic_folder))})
        toxic = StoredWeights(toxic_folder, layout_of(load_config(str(toxic_folder))), what)
        require_equal(base, toxic)

    folder = Path(task["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    private_folder(folder)
    named = method.dtype(settings)
    dtype = None if named is None else getattr(torch, named)
    done = write_edited(
        base, toxic, folder,
        lambda part, before, other: method.edit(part, before, other, settings),
        edits=lambda part: method.edits(part, settings), dtype=dtype,
    )  # fmt: skip
    if dtype is not None:
        config.dtype = dtype
    config.save_pretrained(folder)
    if (base_folder / "generation_config.json").is_file():
        shutil.copyfile(base_folder / "generation_config.json", folder / "generation_config.json")
    tokenizer.save_pretrained(folder)
    measured = check_saved(folder, base, done, method.step and method.step(settings))
    facts = {**done.as_dict(), "saved_step_norm": measured}
    settings_json = settings_of(task)
    write_json(folder / "settings.json", {**settings_json, **facts})
    write_text(folder / "README.md", edit_card({**settings_json, **facts}, base=task["base"]["name"]))
    seconds = time.perf_counter() - started
    return write_manifest(
        folder, stage="edit", key=task["key"], seconds=seconds, config=task["config"], inputs=task["inputs"],
        counts={"expected": len(base.layout.parts), "ok": done.edited + done.copied, "failed": 0},
        extra={**facts, "name": task["cell"], "family": task["family"], "edit_seconds": round(seconds, 3), "device": "cpu"},
    )  # fmt: skip


def check_saved(folder: Path, base: Any, done: Any, step: float | None) -> float:
    """||theta_new - theta|| of the saved folder. StageError: a tensor lacks, adds or is not finite, or the norm is not
    `step` times the toxic vector's, nor that of the edit in memory (within rounding to the stored dtype)."""
    import torch

    from unidetox_ray.core.weights import StoredWeights, distance
    from unidetox_ray.families.loading import load_config
    from unidetox_ray.families.parts import layout_of

    try:
        saved = StoredWeights(folder, layout_of(load_config(str(folder))), "the saved model")
        if saved.foreign or set(saved.layout.parts) != set(base.layout.parts):
            raise ModelError(f"its tensors are not the base model's: {sorted(saved.foreign)[:3]}")
        measured = distance(base, saved)
    except ModelError as error:  # ours, not the user's: we have just saved it
        raise StageError(f"{folder}: the edited model cannot be read again: {error}") from None
    if step is not None:
        expected = abs(step) * done.toxic_norm
        if not math.isclose(done.step_norm, expected, rel_tol=_TOLERANCE, abs_tol=1e-9):
            raise StageError(
                f"{folder}: the edit's norm is {done.step_norm:.6g}, expected {abs(step):g} x {done.toxic_norm:.6g} = {expected:.6g}"
            )
    exact = all(saved.dtype(name) == torch.float32 for name in saved.layout.parts)
    if exact and not math.isclose(measured, done.step_norm, rel_tol=_TOLERANCE, abs_tol=1e-9):
        raise StageError(
            f"{folder}: the saved weights lie {measured:.6g} from the base, the edit {done.step_norm:.6g}"
        )
    return measured
