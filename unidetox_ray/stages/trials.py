"""Trials of weights and decoding methods: one Ray Tune run for all of them, in processes that go from trial to trial.

A trial is a folder with `trial.json`, what is to be done as plain values. It is measured once: `manifest.json`, written
last, says that it is done, and a run that is taken up again passes it over. This module is imported where Ray is wanted.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from safetensors import SafetensorError

from unidetox_ray.artifacts import (
    MANIFEST,
    Manifest,
    finished,
    private_folder,
    read_json,
    write_json,
    write_manifest,
)
from unidetox_ray.errors import UnidetoxError
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.deaths import died, tried_again
from unidetox_ray.stages.opening import OpenModel

TRIAL = "trial.json"


class MeasureTrial(tune.Trainable):
    """A process that measures trial after trial: its start and its imports are paid once (`reuse_actors`)."""

    def setup(self, config: dict[str, Any]) -> None:
        """The first trial's settings say what all share: threads and the precision of the models."""
        from unidetox_ray.stages.cluster import prepare_process

        first = read_json(Path(config["trial"]) / TRIAL)
        self.device = prepare_process(first["threads"])
        self.models = OpenModel(self.device, first["precision"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune has put the next trial's settings in the place of the last one's; nothing else is to be done."""
        return True

    def step(self) -> dict[str, Any]:
        """One whole trial. What its model or its numbers are to blame for is its error; this process stays fit for others."""
        trial = read_json(Path(self.config["trial"]) / TRIAL)
        try:
            measure_trial(trial, self.models, self.device)
        except (UnidetoxError, SafetensorError, ValueError, OSError) as error:
            self.models.close()
            return {"done": True, "error": " ".join(str(error).split())[:400] or type(error).__name__}
        return {"done": True, "error": ""}


def measure_trial(trial: dict[str, Any], models: OpenModel, device: str) -> Manifest:
    """Measure one trial and leave its finished folder; of an edited model nothing but the numbers is kept.

    trial: name, key, folder, model (a handle) or edit (a task of `stages.edit`), probe (see `stages.probe`), config, inputs.
    ValueError where a number is not finite.
    """
    from unidetox_ray.stages.edit import write_edit
    from unidetox_ray.stages.probe import measure

    started = time.perf_counter()
    folder = Path(trial["folder"])
    edited = folder / "model"
    handle = trial["model"]
    try:
        if trial["edit"] is not None:
            write_edit({**trial["edit"], "folder": str(edited)})
            handle = {"path": str(edited), "revision": None}
        model, tokenizer = models.open(handle)
        values = measure(model, tokenizer, {**trial["probe"], "keep": str(folder)}, device)
    finally:
        if trial["edit"] is not None:
            models.close()
            shutil.rmtree(edited, ignore_errors=True)
    broken = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        raise ValueError(f"{broken[0]} = {values[broken[0]]}; the model has diverged")
    return write_manifest(
        folder, stage="trial", key=trial["key"], seconds=time.perf_counter() - started, config=trial["config"],
        inputs=trial["inputs"], extra={"name": trial["name"], "values": values, "device": device},
    )  # fmt: skip


def run_measurements(
    context: Context, trials: Sequence[dict[str, Any]], name: str, max_concurrent: int | None
) -> dict[str, str]:
    """Measure the trials that are not finished as the Tune run `name`; returns the errors by trial folder.

    A trial whose process died is tried again `cluster.max_restarts` times.
    """
    waiting = [trial for trial in trials if finished(Path(trial["folder"]), trial["key"]) is None]
    errors = tried_again(
        waiting,
        context.experiment.cluster.max_restarts + 1,
        lambda trial: str(trial["folder"]),
        lambda trials, attempt: _tune(context, trials, f"{name}-{attempt}", max_concurrent),
        lambda error: error[1],
    )
    return {folder: text for folder, (text, _) in errors.items()}


def _tune(
    context: Context, waiting: Sequence[dict[str, Any]], name: str, max_concurrent: int | None
) -> dict[str, tuple[str, bool]]:
    """One Tune run: by folder, the errors of trials and whether it was their process that died."""
    context.connect()
    from unidetox_ray.stages.cluster import gpus_per_actor
    from unidetox_ray.stages.training import failure
    from unidetox_ray.stages.watch import polled

    for trial in waiting:
        folder = Path(trial["folder"])
        shutil.rmtree(folder, ignore_errors=True)  # what an attempt left that was cut short
        write_json(private_folder(folder) / TRIAL, trial)
    cluster = context.experiment.cluster
    tuner = tune.Tuner(
        tune.with_resources(MeasureTrial, {"cpu": cluster.cpus_per_actor, "gpu": gpus_per_actor(cluster)}),
        param_space={"trial": tune.grid_search([trial["folder"] for trial in waiting])},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=max_concurrent),
        run_config=tune.RunConfig(
            name=name, storage_path=str(context.folder.root / "ray"), verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )  # fmt: skip

    def done() -> int:
        return sum((Path(trial["folder"]) / MANIFEST).exists() for trial in waiting)

    with polled(context, "tuning", "trials", len(waiting), done):
        results = tuner.fit()
    errors = {}
    for index in range(len(results)):
        result = results[index]
        folder_text = str((result.config or {})["trial"])
        said = failure(result.error)[0] if result.error is not None else (result.metrics or {}).get("error")
        dead = died(result.error)
        if said or dead:
            errors[folder_text] = (str(said), dead)
    return errors
