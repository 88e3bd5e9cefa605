"""`bench pipeline`: what Ray costs. The tiny experiment's stages through Ray against the same functions called plainly.

Both sides find the models pre-trained and must end with the same corpora, the same searched setting and the same TP of
every cell; else the benchmark fails. The start-up of Ray is timed apart, that of its workers is not. The plain side is one
process; through Ray as many actors, trials and families work at once as `actors` says, each with the same threads.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from unidetox_ray.artifacts import RunFolder, read_json
from unidetox_ray.bench import plain_pipeline
from unidetox_ray.bench.options import Options
from unidetox_ray.bench.plain_pipeline import Outcome, tp_of
from unidetox_ray.bench.result import BenchResult
from unidetox_ray.bench.timing import forget_peak, peak_gib
from unidetox_ray.config import Experiment, load
from unidetox_ray.errors import ConfigError, StageError
from unidetox_ray.pipeline import run as run_pipeline
from unidetox_ray.stages import models
from unidetox_ray.stages.cluster import connected
from unidetox_ray.stages.context import Context


def run(options: Options) -> BenchResult:
    """seconds: all stages behind `models`, through Ray. ratio_to_plain: these / the plain calls' seconds."""
    # Ray's workers run at nice 15, so that beside any other work they would lose what the plain side gets.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory(prefix="unidetox-bench-") as folder:
        experiment = _experiment(options, Path(folder))
        started = time.perf_counter()
        run_pipeline(experiment, until="models")
        pretraining = time.perf_counter() - started
        started = time.perf_counter()
        with connected(experiment.cluster):
            start_up = time.perf_counter() - started
            forget_peak(torch.device("cpu"))
            started = time.perf_counter()
            result = run_pipeline(experiment, until="score")
            seconds = time.perf_counter() - started
            peak = peak_gib(torch.device("cpu"))
        through_ray = _stored(experiment, result.folder, result.stages)
        plain_seconds, plainly = _plainly(experiment, Path(folder)) if options.plain else (None, None)
        if plainly is not None:
            _same(through_ray, plainly)
        return BenchResult(
            name="pipeline", device="cuda" if torch.cuda.is_available() else "cpu", dtype="fp32", batch=None, seconds=seconds,
            warmup_seconds=start_up, tokens_per_second=through_ray.tokens / seconds,
            ratio_to_plain=seconds / plain_seconds if plain_seconds else None, share_of_limit=None, peak_gib=peak,
            extra={
                "experiment": experiment.name, "limit": experiment.limit, "cells": len(through_ray.tp),
                "actors": options.actors or "as in the experiment file", "threads": experiment.cluster.threads,
                "ratio": "through Ray / plain calls", "plain_seconds": plain_seconds, "stages": through_ray.seconds,
                "plain_stages": plainly.seconds if plainly else None, "training_loops": _loops(result.folder),
                "plain_training_loops": plainly.loops if plainly else None, "ray_start_up_seconds": start_up,
                "pretraining_seconds": pretraining, "same_text": None if plainly is None else True,
                "corpus_texts": sum(map(len, through_ray.corpora.values())), "judgements": through_ray.judgements,
                "peak_is": "the driver's", "torch": torch.__version__,
            },
        )  # fmt: skip


def _experiment(options: Options, folder: Path) -> Experiment:
    source_tree = Path(__file__).parents[2]
    tiny = Path("experiments") / "tiny.yaml"
    candidates = [Path(options.experiment)] if options.experiment else [tiny, source_tree / tiny]
    path = next((each for each in candidates if each.is_file()), None)
    if path is None:
        raise ConfigError(
            f"{candidates[0]}: no such file; run from the source tree or give --experiment FILE"
        )
    given = load(path)
    sections = (given.toxic, given.finetune)
    if given.finetune.adapter != "none" or any(
        part.deepspeed.offload != "none" or part.deepspeed.stage for part in sections
    ):
        raise ConfigError(
            f"{path}: `bench pipeline` compares full-parameter training without sharding; set adapter: none, deepspeed: {{}}"
        )
    here = Path("outputs") / "cache"
    cache = options.cache or (here if here.is_dir() else folder / "cache")
    overrides = [
        "tracking.uri=none",
        "cluster.workers_per_cell=1",
        f"storage={folder}",
        f"cache={cache.absolute()}",
    ]
    if options.actors is not None:
        names = [
            f"cluster.{kind}"
            for kind in ("corpus_actors", "generate_actors", "score_actors", "concurrent_cells")
        ]
        names += ["search.max_concurrent"] if given.search is not None else []
        overrides += [f"{name}={options.actors}" for name in names]
    experiment = load(path, overrides, limit=options.texts)
    if not any(entry.method != "base" for entry in experiment.methods):
        raise ConfigError(
            f"{path}: names no corpus method, so there is little to compare; add unidetox to methods"
        )
    return experiment


def _plainly(experiment: Experiment, folder: Path) -> tuple[float, Outcome]:
    context = Context(experiment, RunFolder(folder / "plain", experiment.name, Path(str(experiment.cache))))
    bases, scorers = models.run(context)  # all cached: only their handles
    started = time.perf_counter()
    found = plain_pipeline.run(context, bases, scorers)
    return time.perf_counter() - started, found


def _loops(root: Path) -> float:
    """Seconds inside the training loops of the models that a run kept, start-up and saving left out."""
    manifests = (read_json(path) for path in (root / "models").glob("*/manifest.json"))
    return float(sum(manifest["extra"]["train_seconds"] for manifest in manifests))


def _stored(experiment: Experiment, root: Path, stages: list[dict[str, Any]]) -> Outcome:
    """The outcome of a run through Ray, from its files."""
    scores, prompts = pl.read_parquet(root / "scores.parquet"), pl.read_parquet(root / "prompts.parquet")
    corpora = {
        path.stem: pl.read_parquet(path)["text"].to_list()
        for path in sorted((root / "corpora").glob("*.parquet"))
    }
    evaluate = experiment.evaluate
    return Outcome(
        corpora=corpora,
        chosen=read_json(root / "search.json")["chosen"] if experiment.search is not None else {},
        tp=tp_of(scores, prompts, evaluate.scorers[0].name, evaluate.threshold),
        judgements=scores.height,
        tokens=int(sum(stage["tokens"] for stage in stages)),
        seconds={stage["stage"]: stage["seconds"] for stage in stages},
    )


def _same(ray: Outcome, plain: Outcome) -> None:
    """StageError unless both sides made the same: a ratio of different work means nothing."""
    for label, texts in plain.corpora.items():
        differing = sum(one != other for one, other in zip(texts, ray.corpora[label], strict=True))
        if differing:
            raise StageError(
                f"bench pipeline: {differing} of {len(texts)} texts of corpus {label} differ from the plain calls'"
            )
    for what in ("chosen", "judgements", "tp"):
        one, other = getattr(ray, what), getattr(plain, what)
        if one != other:
            raise StageError(f"bench pipeline: {what} is {one} through Ray and {other} by plain calls")
