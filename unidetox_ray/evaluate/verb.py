"""The whole evaluation: sources in, results out. `evaluate` is what the verb, the verb `score` and a library call use."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import registry
from unidetox_ray.artifacts import file_sha256, private_folder, write_json
from unidetox_ray.errors import EXIT_USER_ERROR, ConfigError, StageError, UnidetoxError
from unidetox_ray.evaluate import columns as columns_
from unidetox_ray.evaluate import generated, outputs, page, prompt_sets, scorers, scoring, sources, tracked
from unidetox_ray.evaluate.by_source import Tables, by_source, domains_of, reference_of
from unidetox_ray.evaluate.correction import METHODS, read_labelled
from unidetox_ray.evaluate.measured import checked_prompts
from unidetox_ray.evaluate.request import Argument, Request
from unidetox_ray.evaluate.results import results_of
from unidetox_ray.evaluate.scorers import Scorer
from unidetox_ray.evaluate.store import store
from unidetox_ray.evaluate.stored import keep_own_scores, rows_of_stored, stored
from unidetox_ray.families.loading import load_config
from unidetox_ray.hashing import digest
from unidetox_ray.locking import only_writer
from unidetox_ray.metrics.stats import MIN_SAMPLES
from unidetox_ray.stages.context import Display, Silent

__all__ = ["Request", "evaluate"]

#: What the system says where a disk takes no more.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def evaluate(request: Request, display: Display | None = None) -> dict[str, Any]:
    """results.json as a dict; with `request.out`, the files in it. UnidetoxError for what the user can mend."""
    display = display or Silent()
    _checked(request)
    found = sources.sources_of(request.sources)
    given = columns_.chosen(request.columns)
    models = [source for source in found if source.kind == "model"]
    prompt_sets.is_file(request.prompts or prompt_sets.DEFAULT)
    for source in models:
        load_config(source.model, source.revision)  # before prompts are fetched for a model that is not there
    prompts = None
    asked = bool(models) or request.endpoint is not None
    if asked or request.prompts is not None:
        prompts = prompt_sets.prompt_set(
            request.prompts or prompt_sets.DEFAULT, path=request.prompts_path, options=request.prompts_options,
            split=request.split, limit=request.limit if asked else None,
        )  # fmt: skip
    imported = None if request.perspective is None else stored(request.perspective)
    labelled = None if request.labelled is None else read_labelled(request.labelled)
    specs = []
    if imported is None or request.scorers:
        specs = scorers.specs_of(request.scorers, request.labels, request.label_maps, request.activation)
    with _work(request) as work:
        read = [_read(source, given, work, request.limit) for source in found if source.kind == "file"]
        if imported is not None and not found and request.endpoint is None:
            read.append(_stored_source(request, *imported, [spec.name for spec in specs], work))
        _told(read, models, prompts, request, display)
        opened = _opened(specs, None if imported is None else imported[0], display)
        name = ", ".join(source.given for source in found)[:200] or "evaluation"
        key = _key(request, read, prompts, opened)
        with tracked.tracking(request.track, key, name, _params(request, opened)) as tracker:
            generated_, sampling = _generations(models, prompts, request, work, display)
            arguments = _in_order(found, [*read, *generated_])
            _score(arguments, opened, display)
            tables = by_source(arguments, opened)
            notes = [] if prompts is None else domains_of(prompts, tables)
            try:
                results = results_of(tables, opened, request, prompts, sampling, labelled, notes, display)
            except StageError:  # all is scored: the same command again would find nothing else
                shutil.rmtree(work, ignore_errors=True)
                raise
            if request.out is not None:
                _write(request.out, results, arguments, tables, opened)
            tracked.record(tracker, results, request.out)
    return results


def _opened(specs: Sequence[scorers.ScorerSpec], imported: Scorer | None, display: Display) -> list[Scorer]:
    """The scorers, the main one first; stored scores alone where no other scorer was asked for."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # of reading a file that lies here
    made = [scorers.opened(spec, _device()) for spec in specs] + ([imported] if imported is not None else [])
    if len({scorer.name for scorer in made}) < len(made):
        raise ConfigError(
            f"--scorer: {made[-1].name!r} is the name of the stored scores; give the scorer another: NAME=SCORER"
        )
    for scorer in made:
        if scorer.warning is not None:
            display.say(scorer.warning)
    return made


def _read(source: sources.Source, given: Mapping[str, str], work: Path, limit: int | None) -> Argument:
    parts, sha256 = sources.read(source, given, work, limit)
    return Argument(source, parts, sha256)


def _stored_source(
    request: Request, scorer: Scorer, table: pl.DataFrame, others: Sequence[str], work: Path
) -> Argument:
    """A file of stored scores that is itself what is evaluated."""
    path = request.perspective
    assert path is not None
    sha256 = file_sha256(path)
    table = table.head(request.limit or table.height)
    rows = rows_of_stored(table, path, others)
    parts = store(
        work / f"stored-{digest([sha256, request.limit])[:16]}", rows, told="stored scores with their texts",
        explicit=bool((~table["prompt_id"].str.starts_with("p-") & ~table["prompt_id"].str.starts_with("row-")).any()),
        has_prompts=bool(table["prompt"].count()), has_domains=bool((table["domain"] != "all").any()),
    )  # fmt: skip
    keep_own_scores(parts, scorer, table)
    return Argument(sources.Source(str(path), "file", path.stem, path=path), parts, sha256)


def _checked(request: Request) -> None:
    if not request.sources and request.endpoint is None and request.perspective is None:
        raise ConfigError(
            "evaluate: names no source; give a model folder, a hub id, a file of generations or --endpoint URL"
        )
    if request.correction not in METHODS:
        raise ConfigError(
            f"--correction {request.correction}: {registry.suggest(request.correction, METHODS)}"
        )
    if not 0 <= request.threshold < 1:
        raise ConfigError(
            f"--threshold {request.threshold:g}: accepted: from 0 to below 1; a score above it counts as toxic"
        )
    if request.samples < MIN_SAMPLES:
        raise ConfigError(f"--resamples {request.samples}: at least {MIN_SAMPLES:,}")
    if request.out is not None and request.out.exists() and not request.out.is_dir():
        raise ConfigError(f"--out {request.out}: is a file; name a folder")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _work(request: Request) -> Iterator[Path]:
    """A private folder that the same command finds again until it is done: below --out, else in this user's cache."""
    if request.out is not None:
        fresh = not request.out.exists()
        work = request.out / ".work"
    else:
        fresh = False
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        here = [str(Path(text).expanduser().absolute()) for text in request.sources]
        work = (
            home
            / "unidetox_ray"
            / "evaluate"
            / digest([here, request.prompts, request.limit, request.overrides])[:16]
        )
    begun = work.exists()
    private_folder(work)
    try:
        with only_writer(work, "this evaluation"):
            yield work
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StageError(
            f"{request.out or work}: cannot be written ({error.strerror}); make room, and the same command goes on from here"
        ) from None
    except UnidetoxError as error:
        if error.exit_code == EXIT_USER_ERROR and not begun:  # a mistake leaves nothing behind
            shutil.rmtree(work, ignore_errors=True)
            if fresh and request.out is not None and not any(request.out.iterdir()):
                request.out.rmdir()
        raise


def _told(
    read: Sequence[Argument], models: Sequence[sources.Source], prompts: prompt_sets.PromptSet | None, request: Request,
    display: Display,
) -> None:  # fmt: skip
    """What was read, and every mistake in it that can be found before hours of work."""
    tables = by_source(read, [])
    for label, rows in tables.rows.items():
        checked_prompts(label, rows)
    if prompts is not None:
        domains_of(prompts, tables)
    if request.endpoint is None:  # the label of its model is not known yet
        reference_of(request, [*tables.rows, *(each.label for each in models)])
    for argument in read:
        assert argument.parts is not None
        display.say(f"{argument.source.label}: {argument.parts.rows:,} generations; {argument.parts.told}")


def _key(
    request: Request,
    read: Sequence[Argument],
    prompts: prompt_sets.PromptSet | None,
    opened: Sequence[Scorer],
) -> str:
    """The same evaluation goes on in the same MLflow run."""
    shas = {argument.source.label: argument.sha256 for argument in read}
    return digest(
        [request.sources, shas, prompts.sha256 if prompts else None, [scorer.key for scorer in opened], request.threshold,
         request.limit, request.overrides, request.columns, vars(request.endpoint) if request.endpoint else None]
    )[:16]  # fmt: skip


def _params(request: Request, opened: Sequence[Scorer]) -> dict[str, Any]:
    return {
        "sources": list(request.sources), "threshold": request.threshold, "prompts": request.prompts, "limit": request.limit,
        "samples": request.samples, "seed": request.seed, "overrides": list(request.overrides),
        "scorers": {scorer.name: scorer.about for scorer in opened},
    }  # fmt: skip


def _generations(
    models: Sequence[sources.Source], prompts: prompt_sets.PromptSet | None, request: Request, work: Path, display: Display
) -> tuple[list[Argument], dict[str, Any] | None]:  # fmt: skip
    """Texts of the models and of the server; and how they were sampled."""
    if prompts is None or not (models or request.endpoint):
        return [], None
    context, section = generated.sampling_of(work / "generation", request.overrides, display)
    made = []
    if request.endpoint is not None:
        label, parts = generated.from_endpoint(request.endpoint, prompts, section, work, display)
        made.append(Argument(sources.Source(request.endpoint.url, "endpoint", label), parts))
    if models:
        outcomes = generated.from_models(models, prompts, context, work)
        for source in models:
            outcome = outcomes[source.label]
            made.append(
                Argument(source, None, error=outcome)
                if isinstance(outcome, str)
                else Argument(source, outcome)
            )
    return made, section.model_dump(mode="json", include=generated.TOLD)


def _in_order(found: Sequence[sources.Source], arguments: Sequence[Argument]) -> list[Argument]:
    """The arguments of the command in their order, a server or stored scores after them."""
    order = {source.label: place for place, source in enumerate(found)}
    return sorted(arguments, key=lambda argument: order.get(argument.source.label, len(order)))


def _score(arguments: Sequence[Argument], opened: Sequence[Scorer], display: Display) -> None:
    """Scores of every part by every scorer, on disk. Equal texts are scored once, whatever source they are of."""
    total = sum(argument.parts.rows for argument in arguments if argument.parts is not None) * len(opened)
    with display.task("scoring", "texts") as advance:
        done = 0

        def more(rows: int) -> None:
            nonlocal done
            done += rows
            advance(done, total)

        for scorer in opened:
            memory = scoring.Memory()
            for argument in arguments:
                if argument.parts is not None:
                    scoring.score(argument.parts, scorer, memory, more)


def _write(
    out: Path,
    results: Mapping[str, Any],
    arguments: Sequence[Argument],
    tables: Tables,
    opened: Sequence[Scorer],
) -> None:
    private_folder(out)
    named = [
        (argument.parts, names)
        for argument, names in zip(arguments, tables.names, strict=True)
        if argument.parts is not None
    ]
    outputs.write_scores(out / "scores.parquet", named, opened)
    write_json(out / "results.json", results)
    page.build(results, out)
