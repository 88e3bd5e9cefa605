"""The main path: models → toxic → corpus → search → finetune → generate → score → report.

What methods need is made once per family in the stage `toxic`; the models of weights methods are edited in the stage
`finetune`, what decoding methods fit for themselves is fitted there, and their models are put together.

Each stage reads files and writes files and is skipped when its folder is finished; the same command again goes on where
the last one ended.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import registry
from unidetox_ray.artifacts import (
    Manifest,
    RunFolder,
    clear_temporaries,
    write_corpus_csv,
    write_json,
    write_text,
)
from unidetox_ray.config import Experiment, to_yaml
from unidetox_ray.errors import EXIT_OK, EXIT_SOME_CELLS_FAILED, StageError, UnidetoxError
from unidetox_ray.locking import only_writer
from unidetox_ray.records import Recorder, open_recorder
from unidetox_ray.registry import STAGES, Stage
from unidetox_ray.remote import mirror_of
from unidetox_ray.stages.cells import Cell, cells_of, steer, tuned_pairs
from unidetox_ray.stages.context import Context, Display, Silent
from unidetox_ray.stages.copies import Copies
from unidetox_ray.stages.needs import needed

#: Bytes; with less than this free, a failure is most likely the disk's.
_FULL = 4 << 20


@dataclass
class Result:
    """What a run left."""

    folder: Path
    reached: Stage
    rows: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] | None = None
    seconds: float = 0.0

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] != "ok"]

    @property
    def exit_code(self) -> int:
        return EXIT_SOME_CELLS_FAILED if self.failed else EXIT_OK


def run(
    experiment: Experiment, *, until: Stage = "report", fresh: bool = False, display: Display | None = None
) -> Result:
    """Run an experiment up to and including `until`. UnidetoxError subclasses say what went wrong."""
    started = time.perf_counter()
    cache = Path(experiment.cache) if experiment.cache else None
    storage, mirror = mirror_of(experiment.storage, experiment.name)
    folder = RunFolder(storage, experiment.name, cache)
    with storage_errors(folder.root), only_writer(folder.root, f"the run {experiment.name!r}"):
        clear_temporaries(folder.root)
        return _run(Context(experiment, folder, display or Silent(), mirror=mirror), until, fresh, started)


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """What a full or vanished storage makes fail, in one line that says so: libraries tell it in words of their own, or none."""
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise StageError(
            f"storage: {where}: {error.strerror or error}; the same command goes on from here once it can be written"
        ) from error
    except UnidetoxError as error:
        lack = _lack(root)
        if lack is None:
            raise
        raise type(error)(f"{error}; {lack} ({root}); the same command goes on from here") from error


def _lack(root: Path) -> str | None:
    try:
        return "No space left on the storage" if shutil.disk_usage(root).free < _FULL else None
    except OSError:
        return "the storage is gone"


def _run(context: Context, until: Stage, fresh: bool, started: float) -> Result:
    experiment, folder, mirror = context.experiment, context.folder, context.mirror
    if fresh:
        folder.forget()
        if mirror:
            mirror.forget()
    elif mirror:
        mirror.fetch()
    write_text(folder.root / "config.yaml", to_yaml(experiment))
    with open_recorder(context) as recorder:
        try:
            result = _stages(context, recorder, until)
        finally:
            context.close()
            shutil.rmtree(folder.root / "ray", ignore_errors=True)
            if mirror:
                mirror.send()
        result.stages = context.stages
        result.seconds = time.perf_counter() - started
        recorder.finish(seconds=result.seconds, failed_cells=len(result.failed))
    return result


def _stages(context: Context, recorder: Recorder, until: Stage) -> Result:
    from unidetox_ray.stages import (
        content,
        corpus,
        edit,
        finetune,
        fits,
        generate,
        models,
        score,
        search,
        toxic,
        tune,
    )

    experiment = context.experiment
    last = STAGES.index(until)

    def reached(stage: Stage) -> bool:
        return last <= STAGES.index(stage)

    result = Result(context.folder.root, until)
    wanted = needed(experiment)
    bases, scorers = models.run(context)
    if reached("models"):
        return result

    copies = Copies()
    if wanted.copies:
        copies = toxic.run(context, wanted, bases)
        for manifest in copies.manifests.values():
            recorder.copy(manifest)
    if reached("toxic"):
        return result

    toxic_model = copies.models.get(("toxic", experiment.base_family))
    corpora: dict[str, tuple[Path, Manifest]] = {}
    entries = [
        entry for entry in experiment.methods if registry.lookup("methods", entry.method).kind == "corpus"
    ]
    base = bases[experiment.base_family]
    spent = corpus.sample_together(context, entries, base, toxic_model)
    for entry in entries:
        corpora[entry.label] = corpus.run(
            context, entry, base, toxic_model, scorers, spent.get(entry.label, 0.0)
        )
        recorder.corpus(entry.label, *corpora[entry.label])
    show_corpora(context, corpora)
    if reached("corpus"):
        return result

    cells = cells_of(experiment, bases)
    section = experiment.finetune
    if experiment.search is not None:
        cell = next(
            c
            for c in cells
            if c.family == experiment.base_family and c.method.label == experiment.search.method
        )
        section, manifest = search.run(context, cell, corpora[experiment.search.method], scorers)
        write_json(context.folder.root / "search.json", manifest.extra)
        recorder.search(manifest)
        result.search = manifest.extra
    tuning = tune.run(context, bases, corpora, copies, scorers)
    if tuning is not None:
        write_json(context.folder.root / "tuning.json", tuning.values)
        recorder.tuning(tuning.values, tuning.manifest)
        cells = cells_of(experiment, bases, tuning.choices)
    else:
        for name in ("tuning.json", "tuning_test.json"):  # of an earlier run, whose grids this one has not
            (context.folder.root / name).unlink(missing_ok=True)
    if reached("search"):
        return result

    chosen = [cell for cell in cells if cell.error is None]  # the others have no setting to be made with
    if corpora:
        finetune.run(context, chosen, corpora, section)
    edit.run(context, chosen, copies)
    steer(chosen, copies, fits.run(context, chosen, bases))
    if reached("finetune"):
        return result
    generated = generate.run(context, cells)
    for name in ("generations.parquet", "prompts.parquet"):
        link(generated[0] / name, context.folder.root / name)
    if reached("generate"):
        return result
    scored = score.run(context, cells, generated, bases, scorers)
    link(scored[0] / "scores.parquet", context.folder.root / "scores.parquet")
    if reached("score"):
        return result

    if corpora:
        analysed, _ = content.run(context, corpora, scorers)
        for name in content.FILES:
            link(analysed / name, context.folder.root / name)
        recorder.content(analysed)
    result.rows = tabulate(context, cells, generated, scored)
    recorder.results(result.rows, cells, corpora)
    from unidetox_ray.report import build
    from unidetox_ray.report.search import build_search

    if result.search is not None:
        build_search(context.folder.root)
    build(context.folder.root)
    recorder.report(context.folder.root)
    return result


def tabulate(
    context: Context, cells: Sequence[Cell], generated: tuple[Path, Manifest], scored: tuple[Path, Manifest]
) -> list[dict[str, Any]]:
    """results.json and results.parquet from stored generations and scores; needs no model."""
    from unidetox_ray.metrics.measure import ResultSettings
    from unidetox_ray.metrics.pairs import cell_differences
    from unidetox_ray.results import CellInfo, cell_results, write_results
    from unidetox_ray.stages.costs import costs_of

    experiment, evaluate = context.experiment, context.experiment.evaluate
    generations = pl.read_parquet(generated[0] / "generations.parquet")
    prompts = pl.read_parquet(generated[0] / "prompts.parquet")
    scores = pl.read_parquet(scored[0] / "scores.parquet")
    judges = scores.filter(pl.col("metric") == "ppl")["scorer"].unique().to_list()
    costs = costs_of(cells, generated[1], scored[1])
    infos = []
    for cell in cells:
        infos.append(
            CellInfo(
                cell=cell.name, family=cell.family, model=cell.base["name"], method=cell.method.label, seed=cell.seed,
                settings={**cell.settings, **({"tuned": cell.tuned} if cell.tuned else {}), "kind": cell.kind, "fidelity": experiment.fidelity, "limit": experiment.limit},
                status="ok" if cell.error is None else "failed", error=cell.error, costs=costs[cell.name],
            )
        )  # fmt: skip
    settings = ResultSettings(
        threshold=evaluate.threshold, ppl_drop_at=evaluate.ppl_drop_at, group_by=evaluate.group_by, bootstrap_samples=evaluate.bootstrap,
        seed=experiment.seed, max_failed_share=evaluate.max_failed_share, scorer=evaluate.scorers[0].name, judge=judges[0] if judges else None,
    )  # fmt: skip
    rows = cell_results(scores, generations, prompts, cells=infos, settings=settings)
    write_results(rows, context.folder.root)
    pairs = tuned_pairs(cells)
    if pairs:
        found = cell_differences(
            scores, generations, prompts, pairs, ("tp_all", "emt_all", "ppl", "clean_ppl"), settings
        )
        told = [
            {"own": own, "universal": universal, "metrics": metrics}
            for (own, universal), metrics in zip(pairs, found, strict=True)
        ]
        write_json(context.folder.root / "tuning_test.json", told)
    return rows


def show_corpora(context: Context, corpora: dict[str, tuple[Path, Manifest]]) -> None:
    """corpora/<label>.parquet for each, and corpus.parquet and corpus.csv (the released layout) for the first distilled by contrast."""
    root = context.folder.root
    if not corpora:
        return
    for label, (folder, _) in corpora.items():
        link(folder / "corpus.parquet", root / "corpora" / f"{label}.parquet")
    methods = {entry.label: registry.lookup("methods", entry.method) for entry in context.experiment.methods}
    main = next((label for label in corpora if "toxic" in methods[label].needs), next(iter(corpora)))
    link(corpora[main][0] / "corpus.parquet", root / "corpus.parquet")
    write_corpus_csv(root / "corpus.csv", pl.read_parquet(root / "corpus.parquet")["text"].to_list())


def link(source: Path, target: Path) -> None:
    """`target` shows `source`: a hard link where the file system has them, else a copy; replaced atomically."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if target.exists() and target.samefile(source):
        return  # renaming one name of a file to another of its names does nothing, and would leave the temporary one
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
