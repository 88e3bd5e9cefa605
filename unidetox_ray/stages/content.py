"""Stage `content`: the corpora themselves, judged by the experiment's scorers and content classifiers, and compared as text.

Models judge on Ray Data, one order per corpus; counting words is done here. `metrics.content` says what the numbers are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import registry
from unidetox_ray.artifacts import Manifest, finished, key_for, private_folder, write_manifest, write_parquet
from unidetox_ray.hashing import digest
from unidetox_ray.metrics import content
from unidetox_ray.metrics.content_classifier import JUDGED, ContentClassifier, judge_labels, judge_toxicity
from unidetox_ray.schemas import check
from unidetox_ray.settings import ModelRef
from unidetox_ray.stages import held
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle, handle_of
from unidetox_ray.stages.orders import clear_parts, fulfil
from unidetox_ray.stages.scorers import open_scorer, scorer_specs

FILES = ("content.json", "content.parquet")


class ContentWorker:
    """Scorers and classifiers are loaded once per actor; every order is a corpus."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from unidetox_ray.stages.cluster import prepare_process

        device = prepare_process(settings["threads"])
        self.budget = int(settings["token_budget"])
        self.scorers = [(spec, open_scorer(spec, device)) for spec in settings["scorers"]]
        self.classifiers = [(spec, open_classifier(spec, device)) for spec in settings["classifiers"]]

    def work(self, order: dict[str, Any]) -> pl.DataFrame:
        """JUDGED rows of every judge for one corpus."""
        label, texts = order["corpus"], content.read(order["path"]).texts
        tables = [
            judge_toxicity(spec["name"], label, texts, scorer, scorer_about(spec, scorer), self.budget)
            for spec, scorer in self.scorers
        ]
        for spec, classifier in self.classifiers:
            about = classifier.about() | {
                "source": spec["model"]["name"]
            }  # a folder's path is this machine's
            tables.append(judge_labels(spec["name"], label, texts, classifier, self.budget, about=about))
        return pl.concat(tables)


def open_classifier(spec: Mapping[str, Any], device: str) -> ContentClassifier:
    """One of `classifier_specs`, loaded."""
    model = spec["model"]
    return ContentClassifier(model["path"], revision=model["revision"], sha256=spec["sha256"], device=device)


def scorer_about(spec: Mapping[str, Any], scorer: Any) -> dict[str, Any]:
    """What a toxicity scorer is, without the words of a list and without a path of this machine."""
    if spec["kind"] == "lexicon":
        return {"source": "word list", "words": len(scorer.words), "sha256": scorer.sha256}
    model = spec["model"]
    named = {"source": model["name"], "revision": model.get("revision"), "label": spec["label"]}
    return {**named, "sha256": scorer.sha256}


def classifier_specs(context: Context) -> list[dict[str, Any]]:
    """The experiment's content classifiers as plain values, looked for before anything is judged."""
    return [
        {
            "name": classifier.name,
            "model": handle_of(
                ModelRef(source=classifier.source, revision=classifier.revision), classifier.name
            ),
            "sha256": classifier.sha256,
        }
        for classifier in context.experiment.content.classifiers
    ]


def reference_of(context: Context, corpora: Mapping[str, Any]) -> str:
    """The corpus that the others are compared with: the first that owes nothing to the toxic model, sampled ones before
    real text, else the first."""
    methods = {entry.label: registry.lookup("methods", entry.method) for entry in context.experiment.methods}
    free = [label for label in corpora if "toxic" not in methods[label].needs]
    sampled = [label for label in free if methods[label].source == "sample"]
    return next(iter([*sampled, *free, *corpora]))


def run(
    context: Context, corpora: Mapping[str, tuple[Path, Manifest]], scorers: Mapping[str, Handle]
) -> tuple[Path, Manifest]:
    """(folder with content.json and content.parquet, manifest) of an experiment's corpora, of which there is at least one."""
    started = time.perf_counter()
    experiment, evaluate, cluster = (
        context.experiment,
        context.experiment.evaluate,
        context.experiment.cluster,
    )
    specs, classifiers = scorer_specs(experiment, dict(scorers)), classifier_specs(context)
    settings = content.ContentSettings(
        threshold=evaluate.threshold, bootstrap=evaluate.bootstrap, seed=experiment.seed,
        max_failed_share=evaluate.max_failed_share,
    )  # fmt: skip
    reference = reference_of(context, corpora)
    config = {
        "scorers": [_hashed(spec) for spec in specs],
        "classifiers": [_hashed(spec) for spec in classifiers],
        "settings": asdict(settings),
        "reference": reference,
        "order": list(corpora),
    }
    inputs = {label: str(manifest.extra["sha256"]) for label, (_, manifest) in corpora.items()}
    key = key_for("content", config, inputs)
    folder = private_folder(context.folder.stage("content", key))
    manifest = finished(folder, key)
    reused = manifest is not None
    if manifest is None:
        paths = {label: place / "corpus.parquet" for label, (place, _) in corpora.items()}
        judges = len(specs) + len(classifiers)
        orders = [
            {
                "id": label,
                "corpus": label,
                "path": str(path),
                "rows": judges * len(content.read(path).texts),
            }
            for label, path in paths.items()
        ]
        worker_settings = {
            "scorers": specs,
            "classifiers": classifiers,
            "threads": cluster.threads,
            "token_budget": cluster.score_tokens,
        }
        with context.display.task("content of corpora", "judgements") as advance:
            judged = fulfil(
                ContentWorker, worker_settings, orders, folder,
                actors=cluster.score_actors, context=context, progress=advance,
            )  # fmt: skip
        judged = check(judged, JUDGED, "content")
        content.analyse(paths, reference, judged=judged, settings=settings, folder=folder)
        write_parquet(folder / "judged.parquet", judged)
        clear_parts(folder)
        failed = judged["values"].null_count()
        manifest = write_manifest(
            folder, stage="content", key=key, seconds=time.perf_counter() - started, config=config, inputs=inputs,
            counts={"expected": judged.height, "ok": judged.height - failed, "failed": failed},
        )  # fmt: skip
    context.record(
        "content", key, time.perf_counter() - started, reused=reused, processes=min(cluster.score_actors, len(corpora)),
        devices=held.by_actors(context, cluster.score_actors, len(corpora)),
    )  # fmt: skip
    return folder, manifest


def _hashed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A judge as its key and manifest have it: a model by its key, a list of words by its hash."""
    values = {name: value for name, value in spec.items() if name not in {"model", "words"}}
    values |= {"model": spec["model"]["key"]} if "model" in spec else {}
    return values | ({"words": digest(spec["words"])} if "words" in spec else {})
