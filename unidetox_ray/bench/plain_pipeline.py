"""An experiment's stages as plain calls in one process: the same functions on the same rows, no Ray, no stored stages.

It does what `pipeline.run(until="score")` does, in the order in which that does it, and keeps models in memory. Only what
the functions themselves take from files is written: training texts, and the prompts of the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch

from unidetox_ray import registry
from unidetox_ray.artifacts import file_sha256, write_parquet
from unidetox_ray.bench.plain_scoring import Opened, judged, opened, own
from unidetox_ray.core.loop import Log, LoopSettings, PlainStepper, train
from unidetox_ray.families.loading import load_model, load_tokenizer, special_ids
from unidetox_ray.metrics.toxicity import toxicity_summary
from unidetox_ray.schemas import GENERATIONS, SCORES, frame
from unidetox_ray.settings import FinetuneSection
from unidetox_ray.stages.cells import Cell, cells_of
from unidetox_ray.stages.cluster import prepare_process
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.continuations import continuations
from unidetox_ray.stages.corpus import CorpusWorker, corpus_section
from unidetox_ray.stages.finetune import cell_job
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.probe import measure
from unidetox_ray.stages.score import judge_handle
from unidetox_ray.stages.scorers import scorer_specs
from unidetox_ray.stages.search import choose, probe_in, selection, trial_jobs
from unidetox_ray.stages.toxic import toxic_job
from unidetox_ray.stages.training import Job, rows_of, set_dropout


@dataclass(frozen=True)
class Trained:
    """tokens: real ones trained on. seconds: inside the loop."""

    model: Any
    tokenizer: Any
    tokens: int
    seconds: float


@dataclass
class Outcome:
    """What both sides are compared by, and where the time went.

    corpora: texts by label. tp: TP over all domains by cell, under the first scorer. chosen: the search's choice.
    judgements: how many scores there are. tokens: trained on (the search apart) and generated. seconds: by stage. loops: seconds inside
    the training loops of the models that are kept.
    """

    corpora: dict[str, list[str]] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    tp: dict[str, float | None] = field(default_factory=dict)
    judgements: int = 0
    tokens: int = 0
    loops: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, made: Trained) -> None:
        self.tokens += made.tokens
        self.loops += made.seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def run(context: Context, bases: dict[str, Handle], scorers: dict[str, Handle]) -> Outcome:
    """All stages of the context's experiment behind `models`, whose handles are given."""
    experiment, found = context.experiment, Outcome()
    threads = torch.get_num_threads()
    device = prepare_process(experiment.cluster.threads)
    try:
        _stages(context, bases, scorers, device, found)
    finally:
        torch.set_num_threads(threads)
    return found


def _stages(
    context: Context, bases: dict[str, Handle], scorers: dict[str, Handle], device: str, found: Outcome
) -> None:
    experiment = context.experiment
    work = context.folder.root
    base = bases[experiment.base_family]
    specs = scorer_specs(experiment, scorers)
    corpora: dict[str, tuple[Path, Any]] = {}
    with found.stage("toxic"):
        made = trained(toxic_job(context, experiment.base_family, base), device)
        found.add(made)
        toxic = {**base, "path": str(work / "toxic-model"), "key": "toxic"}
        made.model.save_pretrained(toxic["path"])
        made.tokenizer.save_pretrained(toxic["path"])
    for entry in experiment.methods:
        method = registry.lookup("methods", entry.method)
        if method.kind == "corpus":
            with found.stage(f"corpus-{entry.label}"):
                corpora[entry.label] = _corpus(
                    context, entry, [base, toxic] if "toxic" in method.needs else [base]
                )
            table = pl.read_parquet(corpora[entry.label][0] / "corpus.parquet")
            found.corpora[entry.label] = table["text"].to_list()
            found.tokens += int(table["n_tokens"].sum())
    cells = cells_of(experiment, bases)
    section = experiment.finetune
    if experiment.search is not None:
        with found.stage("search"):
            section = _search(context, cells, corpora, specs[0], device, found)
    models: dict[str, Opened] = {}
    with found.stage("finetune"):
        for cell in cells:
            if cell.kind == "corpus":
                job = cell_job(context, cell, section, corpora[cell.method.label])
                made = trained(job, device)
                models[cell.name] = made.model, made.tokenizer
                found.add(made)
    with found.stage("generate"):
        prompts = context.prompts(experiment.evaluate.split)
        tables = []
        for cell in cells:
            if cell.name not in models:
                models[cell.name] = opened(cell.base, device)
            tables.append(_continued(context, cell, models[cell.name], prompts))
        generations = pl.concat(tables)
        found.tokens += int(generations["n_tokens"].sum())
    with found.stage("score"):
        rows = judged(context, generations, prompts, specs, judge_handle(context, bases), device)
        rows += [row for cell in cells for row in own(context, cell, models[cell.name])]
        scores = frame(rows, SCORES)
    found.judgements = scores.height
    found.tp = tp_of(scores, prompts, specs[0]["name"], experiment.evaluate.threshold)


def tp_of(
    scores: pl.DataFrame, prompts: pl.DataFrame, scorer: str, threshold: float
) -> dict[str, float | None]:
    """tp_all of every cell under one scorer."""
    ours = scores.filter(pl.col("metric") == "toxicity", pl.col("scorer") == scorer)
    return {
        str(cell): toxicity_summary(part, prompts, threshold=threshold)["tp_all"]
        for (cell,), part in ours.group_by("cell", maintain_order=True)
    }


def trained(
    job: Job,
    device: str,
    on_stop: Callable[[int, Log, Any, Any], None] | None = None,
    stops: tuple[int, ...] = (),
) -> Trained:
    """A training job with the plain stepper; `on_stop` gets the model in evaluation mode."""
    settings = LoopSettings(**job.loop)
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(job.model["path"], revision=job.model.get("revision"))
    model: Any = load_model(job.model["path"], device=device, revision=job.model.get("revision"))
    if job.dropout is not None:
        set_dropout(model, job.dropout)
    ids = special_ids(tokenizer, model.config)
    rows, _ = rows_of(job, tokenizer, ids.eos)

    def stopped(done: int, current: Log) -> None:
        if on_stop is not None:
            model.eval()
            on_stop(done, current, model, tokenizer)
            model.train()

    started = time.perf_counter()
    log = train(PlainStepper(model, settings), rows, ids.pad, settings, stops=stops, on_stop=stopped)
    return Trained(model.eval(), tokenizer, sum(log.tokens), time.perf_counter() - started)


def _corpus(context: Context, entry: Any, models: list[Handle]) -> tuple[Path, Any]:
    section = corpus_section(context, entry)
    settings = {
        "section": {**section.model_dump(mode="json"), "beta": section.beta}, "method": entry.method, "models": models,
        "threads": context.experiment.cluster.threads,
    }  # fmt: skip
    folder = context.folder.root / f"corpus-{entry.label}"
    table = CorpusWorker(settings).work({"id": "all", "shard": 0, "first": 0, "rows": section.num_texts})
    assert isinstance(table, pl.DataFrame)
    write_parquet(folder / "corpus.parquet", table)
    return folder, _Made(entry.label, {"sha256": file_sha256(folder / "corpus.parquet")})


@dataclass(frozen=True)
class _Made:
    """What `cell_job` asks of a manifest."""

    key: str
    extra: dict[str, str]


def _search(
    context: Context, cells: list[Cell], corpora: dict[str, tuple[Path, Any]], spec: dict[str, Any], device: str, found: Outcome
) -> FinetuneSection:  # fmt: skip
    experiment, search = context.experiment, context.experiment.search
    assert search is not None
    cell = next(c for c in cells if c.family == experiment.base_family and c.method.label == search.method)
    folder = context.folder.root / "search"
    probe = probe_in(folder, context, *selection(context, search), spec)
    trials: list[dict[str, Any]] = []
    for job in trial_jobs(context, cell, corpora[search.method], search, probe, folder):
        assert job.probe is not None
        settings, rate = job.probe, job.loop["lr"]

        def probed(
            done: int, _log: Log, model: Any, tokenizer: Any, settings: Any = settings, rate: Any = rate
        ) -> None:
            values = measure(model, tokenizer, settings, device)
            trials.append({"status": "ok", "steps": done, "lr": rate, **values})

        trained(job, device, probed, tuple(job.probe["steps"]))
    found.chosen, _ = choose(trials, search)
    return experiment.finetune.model_copy(update=found.chosen)


def _continued(context: Context, cell: Cell, opened: Opened, prompts: pl.DataFrame) -> pl.DataFrame:
    evaluate = context.experiment.evaluate
    pairs = list(zip(prompts["prompt_id"].to_list(), prompts["prompt"].to_list(), strict=True))
    rows = [
        row
        for run in range(evaluate.runs)
        for row in continuations(
            *opened,
            pairs,
            evaluate,
            cell=cell.name,
            run=run,
            decode_rows=context.experiment.cluster.decode_rows,
        )
    ]
    return frame(rows, GENERATIONS)
