"""What `detoxify.json` and the card say of a model: plain values, no text of the corpus and none that was generated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidetox_ray.detoxify.asked import Asked
from unidetox_ray.detoxify.licences import licence_files, licence_of

if TYPE_CHECKING:
    from unidetox_ray.artifacts import Manifest
    from unidetox_ray.config import Experiment
    from unidetox_ray.detoxify.opened import Opened
    from unidetox_ray.stages.training import Job


def opening_of(asked: Asked) -> str:
    """How the folder is opened: a key of `card`'s words."""
    if asked.adapter == "bottleneck":
        return "bottleneck"
    return "adapter" if asked.keep_adapter else "none"


def base_facts(asked: Asked, target: Opened) -> dict[str, Any]:
    """What the new model was made from. May ask the hub for the base model's card."""
    folder = Path(asked.model).expanduser()
    beside = [path.name for path in licence_files(folder)] if folder.is_dir() else []
    return {
        "name": target.handle["name"], "hub_id": target.hub_id, "revision": asked.revision, "model_type": target.model_type,
        "key": target.handle["key"], "licence": licence_of(asked.model, asked.revision), "licence_files": beside,
    }  # fmt: skip


def training_facts(experiment: Experiment, job: Job, manifest: Manifest) -> dict[str, Any]:
    """How it was trained, and what that came to."""
    section, extra = experiment.finetune, manifest.extra
    adapter = None
    if job.adapter is not None:
        adapter = {name: value for name, value in job.adapter.items() if name != "keep"}
    return {
        "adapter": adapter or "none: all weights", "adapted_layers": extra.get("adapter_targets"), "steps": extra["steps"],
        "passes_over_the_texts": None
        if section.packing
        else passes(extra["steps"], section.batch_size, extra["texts"]["texts"]),
        "batch_size": section.batch_size, "learning_rate": section.lr, "schedule": section.schedule,
        "precision": section.precision, "max_length": section.max_length, "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm, "dropout": section.dropout, "packing": section.packing, "seed": job.settings["seed"],
        **{f"texts_{name}" if name != "texts" else name: count for name, count in extra["texts"].items()}, "trained_parameters": extra["trainable_parameters"], "train_tokens": extra["train_tokens"],
        "train_seconds": extra["train_seconds"], "final_loss": extra["final_loss"], "device": extra["device"],
    }  # fmt: skip


def evaluation_facts(asked: Asked, experiment: Experiment, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was measured, and under which protocol. rows: before and after."""
    before, after = rows
    evaluate = experiment.evaluate
    metrics = {
        name: {"before": before["metrics"][name], "after": entry}
        for name, entry in after["metrics"].items()
        if name in before["metrics"]
    }
    scorer = evaluate.scorers[0]
    return {
        "metrics": metrics, "scorer": scorer.source if scorer.kind == "classifier" else f"word list {Path(scorer.source).name}",
        "scorer_revision": scorer.revision, "prompts": Path(asked.prompts or "toxigen").name,
        "clean": None if asked.clean is None else Path(asked.clean).name,
        **{name: getattr(evaluate, name) for name in ("continuations", "max_new_tokens", "top_p", "top_k", "temperature",
                                                      "runs", "seed", "threshold", "bootstrap")},
    }  # fmt: skip


def passes(steps: int, batch_size: int, texts: int) -> float:
    """How often the training sees each text."""
    return round(steps * batch_size / texts, 2)
