"""Stage `models`: every model the experiment needs, ready to open by path. `scratch:` ones are trained here and cached.

Hub ids and folders are passed on as they are; what is hashed is the revision, or the folder's weights.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import (
    file_sha256,
    finished,
    key_for,
    private_folder,
    write_manifest,
    write_parquet,
)
from unidetox_ray.errors import ModelError, StageError, UnidetoxError
from unidetox_ray.hashing import digest
from unidetox_ray.locking import turn
from unidetox_ray.settings import ModelRef, ScorerRef, ScratchSection
from unidetox_ray.stages import held
from unidetox_ray.stages.context import Context, absolute
from unidetox_ray.stages.tasks import Task, run_tasks

Handle = dict[str, Any]
"""{path, revision, key, family, name}: enough to open a model anywhere."""


def run(context: Context) -> tuple[dict[str, Handle], dict[str, Handle]]:
    """(families, scorers): a handle per family of the experiment (the base family included) and per classifier scorer."""
    experiment = context.experiment
    started = time.perf_counter()
    families = list(dict.fromkeys([experiment.base_family, *experiment.families]))
    if experiment.evaluate.ppl_model in experiment.models:
        families = list(dict.fromkeys([*families, str(experiment.evaluate.ppl_model)]))
    handles: dict[str, Handle] = {}
    waiting: dict[str, Any] = {}
    tasks: list[dict[str, Any]] = []
    for family in families:
        ref = experiment.model_of(family)
        if ref.source == "scratch:":
            tasks.append(_language_model_task(context, family, ref.scratch or ScratchSection()))
            waiting[f"family/{family}"] = tasks[-1]
        else:
            handles[f"family/{family}"] = handle_of(ref, family)
    for scorer in experiment.evaluate.scorers:
        if scorer.kind != "classifier":
            continue
        if scorer.source == "scratch:":
            tasks.append(_classifier_task(context, scorer))
            waiting[f"scorer/{scorer.name}"] = tasks[-1]
        else:
            ref = ModelRef(source=scorer.source, revision=scorer.revision)
            handles[f"scorer/{scorer.name}"] = {
                **handle_of(ref, scorer.name),
                "sha256": scorer.sha256,
                "label": scorer.label,
            }
    missing = _missing(tasks)
    if missing:
        # Another run may be training the same model into the same cache.
        with turn(context.folder.cache, "a model in the cache", context.display.say):
            missing = _missing(tasks)
            if missing:
                _train(context, missing)
    for name, task in waiting.items():
        manifest = finished(Path(task["folder"]), task["key"])
        if manifest is None:
            raise StageError(f"models: {task['name']} was trained but left no manifest in {task['folder']}")
        handles[name] = {
            "path": task["folder"], "revision": None, "key": task["key"], "family": task["family"], "name": f"scratch:{task['name']}",
            "label": task.get("label", "toxic"), "sha256": None, "extra": manifest.extra,
        }  # fmt: skip
    key = digest({name: handle["key"] for name, handle in handles.items()})[:16]
    trained = [finished(Path(task["folder"]), task["key"]) for task in missing]
    context.record(
        "models", key, time.perf_counter() - started, reused=not missing, partial=len(missing) < len(tasks),
        tokens=sum(manifest.extra.get("train_tokens", 0) for manifest in trained if manifest is not None),
        devices=held.by_tasks(context, len(missing), 0.25),
    )  # fmt: skip
    return (
        {name.partition("/")[2]: handle for name, handle in handles.items() if name.startswith("family/")},
        {name.partition("/")[2]: handle for name, handle in handles.items() if name.startswith("scorer/")},
    )


def _missing(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [task for task in tasks if finished(Path(task["folder"]), task["key"]) is None]


def handle_of(ref: ModelRef, family: str) -> Handle:
    """A hub id or a folder. A folder's key covers its configuration and weights; a hub id's its revision."""
    path = Path(ref.source).expanduser()
    if not path.is_dir():
        if ref.source.startswith((".", "/", "~")):
            raise ModelError(
                f"{ref.source}: no such folder; give a model folder with config.json, or a hub id"
            )
        return {
            "path": ref.source,
            "revision": ref.revision,
            "key": digest([ref.source, ref.revision])[:16],
            "family": family,
            "name": ref.source,
        }
    files = sorted(p for p in path.iterdir() if p.suffix in {".json", ".safetensors", ".model", ".txt"})
    if not (path / "config.json").exists():
        raise ModelError(f"{ref.source}: holds no config.json; give a folder that `save_pretrained` wrote")
    parts = [[p.name, p.stat().st_size, file_sha256(p)] for p in files]
    return {
        "path": absolute(str(path)),
        "revision": None,
        "key": digest(parts)[:16],
        "family": family,
        "name": path.name,
    }


def _language_model_task(context: Context, family: str, spec: ScratchSection) -> dict[str, Any]:
    sources = [context.data("pretrain", source) for source in context.experiment.data.pretrain]
    inputs = {f"pretrain{index}": loaded.sha256 for index, loaded in enumerate(sources)}
    config = {"family": family, **spec.model_dump(mode="json")}
    key = key_for("scratch", config, inputs)
    tables = [loaded.table for loaded in sources]
    return {
        "name": family, "family": family, "key": key, "folder": str(context.folder.cache / f"{family}-{key}"), "kind": "lm",
        "spec": spec.model_dump(), "config": config, "inputs": inputs, "tables": tables,
    }  # fmt: skip


def _classifier_task(context: Context, scorer: ScorerRef) -> dict[str, Any]:
    loaded = context.data("scorer", context.experiment.data.scorer)
    spec = scorer.scratch or ScratchSection()
    config = {"classifier": True, **spec.model_dump(mode="json")}
    inputs = {"scorer": loaded.sha256}
    key = key_for("scratch", config, inputs)
    return {
        "name": scorer.name, "family": "bert", "key": key, "folder": str(context.folder.cache / f"{scorer.name}-{key}"), "kind": "classifier",
        "spec": spec.model_dump(), "config": config, "inputs": inputs, "tables": [loaded.table], "label": scorer.label,
    }  # fmt: skip


def _train(context: Context, tasks: list[dict[str, Any]]) -> None:
    context.connect()
    from unidetox_ray.stages.cluster import has_gpus

    texts: dict[str, str] = {}
    for task in tasks:
        name = digest(task["inputs"])[:16]
        if name not in texts:
            path = context.folder.cache / f".texts-{name}.parquet"
            write_parquet(path, pl.concat([table for table in task["tables"]], how="diagonal"))
            texts[name] = str(path)
        task["texts"] = texts[name]
        del task["tables"]

    def failed(task: Task, text: str, kind: type[UnidetoxError]) -> None:
        raise kind(f"models: training {task['name']} from scratch failed: {text}")

    # The longest first: the classifier is the odd one out and starts last.
    threads = context.experiment.cluster.threads
    run_tasks(
        context, train_scratch, [{**task, "threads": threads} for task in tasks], failed,
        label="models (first use)", unit="models", gpus=0.25 if has_gpus() else 0.0,
    )  # fmt: skip
    for text_file in texts.values():
        Path(text_file).unlink(missing_ok=True)


def train_scratch(task_text: str) -> None:
    """Ray task: train one small model and leave its finished folder."""
    from unidetox_ray.stages.cluster import prepare_process

    task = json.loads(task_text)
    device = prepare_process(task["threads"])
    started = time.perf_counter()
    folder = private_folder(Path(task["folder"]))
    shutil.rmtree(folder)
    private_folder(folder)
    table = pl.read_parquet(task["texts"])
    spec = ScratchSection(**task["spec"])
    extra = (
        _language_model(task, table, spec, folder, device)
        if task["kind"] == "lm"
        else _classifier(table, spec, folder, device)
    )
    write_manifest(
        folder, stage="scratch", key=task["key"], seconds=time.perf_counter() - started, config=task["config"],
        inputs=task["inputs"], extra={**extra, "name": task["name"], "device": device},
    )  # fmt: skip


def _language_model(
    task: dict[str, Any], table: pl.DataFrame, spec: ScratchSection, folder: Path, device: str
) -> dict[str, Any]:
    import torch

    from unidetox_ray import registry
    from unidetox_ray.core.loop import LoopSettings, PlainStepper, train
    from unidetox_ray.families.loading import special_ids
    from unidetox_ray.families.scratch import build_model, pack
    from unidetox_ray.families.tokenizers import train_tokenizer

    family = registry.lookup("families", task["family"])
    texts = table.filter(pl.col("split") == "train")["text"].to_list()
    torch.manual_seed(spec.seed)
    tokenizer = train_tokenizer(family, texts, spec.vocab_size)
    model = build_model(family, tokenizer, spec).to(device)  # type: ignore[arg-type]
    ids = special_ids(tokenizer, model.config)
    rows = pack(tokenizer, texts, ids, length=spec.length)
    settings = LoopSettings(
        steps=spec.steps,
        lr=spec.lr,
        batch_size=spec.batch_size,
        seed=spec.seed,
        schedule="linear",
        compile="off",
    )  # a few hundred small steps do not repay a compiler
    log = train(PlainStepper(model, settings), rows, ids.pad, settings)
    model.eval().to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "final_loss": log.loss[-1], "train_tokens": sum(log.tokens),
        "vocabulary": len(tokenizer), "rows": len(rows),
    }  # fmt: skip


def _classifier(table: pl.DataFrame, spec: ScratchSection, folder: Path, device: str) -> dict[str, Any]:
    from unidetox_ray.stages.classifier import train_classifier

    return train_classifier(table, spec, folder, device)
