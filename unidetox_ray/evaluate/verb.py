"""The whole evaluation: sources in, results out. `evaluate` is what the verb, the verb `score` and a library call use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray import registry
from unidetox_ray.artifacts import file_sha256, private_folder, versions, write_json
from unidetox_ray.config import digest
from unidetox_ray.errors import EXIT_USER_ERROR, ConfigError, DataError, StageError, UnidetoxError
from unidetox_ray.evaluate import columns as columns_
from unidetox_ray.evaluate import generated, outputs, page, prompt_sets, scorers, scoring, sources, tracked
from unidetox_ray.evaluate.compared import Comparisons, pair_of
from unidetox_ray.evaluate.correction import METHODS, Labelled, corrected_share, labelled_of, read_labelled
from unidetox_ray.evaluate.measured import (
    POOLED,
    Judged,
    Pool,
    checked_prompts,
    entry,
    judged,
    keyed,
    rows_of,
    statistics_of,
)
from unidetox_ray.evaluate.scorers import Scorer
from unidetox_ray.evaluate.store import Parts, prompt_key, store
from unidetox_ray.evaluate.stored import rows_of_stored, stored
from unidetox_ray.families.loading import load_config
from unidetox_ray.locking import only_writer
from unidetox_ray.metrics.stats import MIN_SAMPLES, RatioMean
from unidetox_ray.stages.context import Display, Silent

#: From this share of failures on, a note says that the numbers describe the rest.
_MANY_FAILED = 0.01
#: More prompts than this take seconds to resample.
_MANY_PROMPTS = 20_000


@dataclass(frozen=True)
class Request:
    """What to evaluate and how; field by field the options of the command."""

    sources: tuple[str, ...]
    scorers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    label_maps: tuple[str, ...] = ()
    activation: str = "auto"
    threshold: float = 0.5
    columns: tuple[str, ...] = ()
    prompts: str | None = None
    prompts_path: str | None = None
    prompts_options: tuple[str, ...] = ()
    split: str = "test"
    limit: int | None = None
    overrides: tuple[str, ...] = ()
    reference: str | None = None
    samples: int = MIN_SAMPLES
    seed: int = 0
    endpoint: generated.Server | None = None
    perspective: Path | None = None
    labelled: Path | None = None
    correction: str = METHODS[0]
    out: Path | None = None
    track: str | None = "none"


@dataclass(frozen=True)
class _Argument:
    """A source of the command with what became of it: its generations as parts, or why there are none."""

    source: sources.Source
    parts: Parts | None
    sha256: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class _Tables:
    """Rows by source. owners: whose they are. failed: sources without generations, and why. names: what the sources of each
    argument are called, in the order of the arguments."""

    rows: dict[str, pl.DataFrame]
    owners: dict[str, _Argument]
    failed: dict[str, str]
    names: list[dict[str, str]]


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
            read.append(_stored_source(request, imported[1], [spec.name for spec in specs], work))
        _told(read, models, prompts, request, display)
        opened = _opened(specs, None if imported is None else imported[0], display)
        name = ", ".join(source.given for source in found)[:200] or "evaluation"
        key = _key(request, read, prompts, opened)
        with tracked.tracking(request.track, key, name, _params(request, opened)) as tracker:
            generated_, sampling = _generations(models, prompts, request, work, display)
            arguments = _in_order(found, [*read, *generated_])
            _score(arguments, opened, display)
            tables = _by_source(arguments, opened)
            notes = [] if prompts is None else _domains_of(prompts, tables)
            try:
                results = _results(tables, opened, request, prompts, sampling, labelled, notes, display)
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


def _read(source: sources.Source, given: Mapping[str, str], work: Path, limit: int | None) -> _Argument:
    parts, sha256 = sources.read(source, given, work, limit)
    return _Argument(source, parts, sha256)


def _stored_source(request: Request, table: pl.DataFrame, others: Sequence[str], work: Path) -> _Argument:
    """A file of stored scores that is itself what is evaluated."""
    path = request.perspective
    assert path is not None
    sha256 = file_sha256(path)
    rows = rows_of_stored(table.head(request.limit or table.height), path, others)
    parts = store(
        work / f"stored-{digest([sha256, request.limit])[:16]}", rows, told="stored scores with their texts",
        explicit=bool((~table["prompt_id"].str.starts_with("p-") & ~table["prompt_id"].str.starts_with("row-")).any()),
        has_prompts=bool(table["prompt"].count()), has_domains=bool((table["domain"] != "all").any()),
    )  # fmt: skip
    return _Argument(sources.Source(str(path), "file", path.stem, path=path), parts, sha256)


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
    except UnidetoxError as error:
        if error.exit_code == EXIT_USER_ERROR and not begun:  # a mistake leaves nothing behind
            shutil.rmtree(work, ignore_errors=True)
            if fresh and request.out is not None and not any(request.out.iterdir()):
                request.out.rmdir()
        raise


def _told(
    read: Sequence[_Argument], models: Sequence[sources.Source], prompts: prompt_sets.PromptSet | None, request: Request,
    display: Display,
) -> None:  # fmt: skip
    """What was read, and every mistake in it that can be found before hours of work."""
    tables = _by_source(read, [])
    for label, rows in tables.rows.items():
        checked_prompts(label, rows)
    if prompts is not None:
        _domains_of(prompts, tables)
    if request.endpoint is None:  # the label of its model is not known yet
        _reference(request, [*tables.rows, *(each.label for each in models)])
    for argument in read:
        assert argument.parts is not None
        display.say(f"{argument.source.label}: {argument.parts.rows:,} generations; {argument.parts.told}")


def _key(
    request: Request,
    read: Sequence[_Argument],
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
) -> tuple[list[_Argument], dict[str, Any] | None]:  # fmt: skip
    """Texts of the models and of the server; and how they were sampled."""
    if prompts is None or not (models or request.endpoint):
        return [], None
    context, section = generated.sampling_of(work / "generation", request.overrides, display)
    made = []
    if request.endpoint is not None:
        label, parts = generated.from_endpoint(request.endpoint, prompts, section, work, display)
        made.append(_Argument(sources.Source(request.endpoint.url, "endpoint", label), parts))
    if models:
        outcomes = generated.from_models(models, prompts, context, work)
        for source in models:
            outcome = outcomes[source.label]
            made.append(
                _Argument(source, None, error=outcome)
                if isinstance(outcome, str)
                else _Argument(source, outcome)
            )
    return made, section.model_dump(mode="json", include=generated.TOLD)


def _in_order(found: Sequence[sources.Source], arguments: Sequence[_Argument]) -> list[_Argument]:
    """The arguments of the command in their order, a server or stored scores after them."""
    order = {source.label: place for place, source in enumerate(found)}
    return sorted(arguments, key=lambda argument: order.get(argument.source.label, len(order)))


def _score(arguments: Sequence[_Argument], opened: Sequence[Scorer], display: Display) -> None:
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


def _results(
    found: _Tables, opened: Sequence[Scorer], request: Request,
    prompts: prompt_sets.PromptSet | None, sampling: Mapping[str, Any] | None, labelled: pl.DataFrame | None, notes: list[str], display: Display,
) -> dict[str, Any]:  # fmt: skip
    tables, owners, failed = found.rows, found.owners, found.failed
    if not tables:
        raise StageError(f"evaluate: no source has a generation; {next(iter(failed.values()), '')}")
    tables = keyed(tables, by_text=_by_text(owners, notes))
    pool, main = Pool(request.samples, request.seed), opened[0].name
    reference = _reference(request, list(tables))
    waiting = {}
    for label, rows in tables.items():
        space = pool.space(
            rows.select(pl.col("key").alias("prompt_id"), "domain", "distribution").unique("prompt_id")
        )
        for scorer in opened:
            part = judged(label, scorer.name, rows, space, request.threshold)
            statistics = statistics_of(part)
            waiting[label, scorer.name] = (
                part,
                {name: pool.add(space, each) for name, each in statistics.items()},
            )
    comparisons = Comparisons(pool, request.threshold, request.seed)
    anonymous = frozenset(
        label
        for label, owner in owners.items()
        if owner.parts is not None and not owner.parts.explicit and not owner.parts.has_prompts
    )
    for label in tables:
        if label != reference:
            pair = pair_of(label, reference, tables, anonymous)
            comparisons.add(pair, tables, [scorer.name for scorer in opened])
            notes += _not_shared(pair)
    most = max(rows["key"].n_unique() for rows in tables.values())
    if most > _MANY_PROMPTS:
        display.say(f"resampling {most:,} prompts {request.samples:,} times …")
    pool.draw()
    samples = (
        {} if labelled is None else {scorer.name: _sample(scorer, labelled, request) for scorer in opened}
    )
    rows_made = []
    for label in [*tables, *failed]:
        if label in failed:
            rows_made.append(_source(label, None, None, failed[label]))
            continue
        made = _source(label, owners[label], tables[label], None)
        for scorer in opened:
            part, statistics = waiting[label, scorer.name]
            tail = outputs.tail_of(scorer.name, main)
            made["counts"][scorer.name] = part.counts
            for (measure, kind, where), statistic in statistics.items():
                numbers = entry(statistic, pool.of(statistic))
                if kind == "scope":
                    made["metrics"][f"{measure}_{where}{tail}"] = numbers
                else:
                    domain = made["domains"].setdefault(where, {"distribution": part.space.domains[where]})
                    domain[f"{measure}{tail}"] = numbers
        for name, sample in samples.items():
            made["corrected"][name] = _corrected(waiting[label, name], sample, pool, request)
            if "reason" in made["corrected"][name]:
                notes.append(
                    f"{label}: the share under {name} is not corrected: {made['corrected'][name]['reason']}"
                )
        _judge_failures(made, notes)
        rows_made.append(made)
    if all(row["status"] == "failed" for row in rows_made):
        raise StageError(f"evaluate: no text has a score; {rows_made[0]['error']}")
    notes += _uneven(rows_made)
    return {
        "sources": rows_made, "reference": reference if len(tables) > 1 else None, "comparisons": comparisons.results(),
        "scorer": main, "scorers": [scorer.about for scorer in opened], "threshold": request.threshold,
        "prompts": None if prompts is None else {"name": prompts.name, "sha256": prompts.sha256, "prompts": prompts.table.height},
        "sampling": None if sampling is None else dict(sampling), "bootstrap": {"samples": request.samples, "seed": request.seed},
        "notes": list(dict.fromkeys(notes)), "versions": versions(),
    }  # fmt: skip


def _by_source(arguments: Sequence[_Argument], opened: Sequence[Scorer]) -> _Tables:
    """The rows of every source under a name of its own; a file can hold several sources."""
    found: list[tuple[str, int, pl.DataFrame]] = []
    failed = {}
    for place, argument in enumerate(arguments):
        if argument.parts is None:
            failed[argument.source.label] = argument.error or "no generations"
            continue
        for (inner,), part in rows_of(argument.parts, opened).group_by("source", maintain_order=True):
            found.append((str(inner), place, part))
    labels = sources.distinct([(inner, arguments[place].source.label) for inner, place, _ in found])
    names: list[dict[str, str]] = [{} for _ in arguments]
    for label, (inner, place, _) in zip(labels, found, strict=True):
        names[place][inner] = label
    rows = {label: part for label, (_, _, part) in zip(labels, found, strict=True)}
    owners = {label: arguments[place] for label, (_, place, _) in zip(labels, found, strict=True)}
    return _Tables(rows, owners, failed, names)


def _domains_of(prompts: prompt_sets.PromptSet, tables: _Tables) -> list[str]:
    """Give files that name no domains those of the prompt set, by the prompts' texts, else ids; notes on what does not meet."""
    known = prompts.table.select("prompt_id", "domain", "distribution").with_columns(
        pl.Series("prompt_key", [prompt_key(text) for text in prompts.table["prompt"]])
    )
    notes = []
    for label, rows in tables.rows.items():
        parts = tables.owners[label].parts
        if parts is None or parts.has_domains:
            continue
        by = "prompt_key" if parts.has_prompts else "prompt_id"
        found = rows.drop("domain", "distribution").join(
            known.unique(by, keep="first", maintain_order=True).select(by, "domain", "distribution"),
            on=by, how="left", maintain_order="left",
        )  # fmt: skip
        foreign = (
            found.filter(pl.col("domain").is_null())[by].n_unique() if found["domain"].null_count() else 0
        )
        if foreign == rows[by].n_unique():
            raise DataError(
                f"{label}: holds no prompt of --prompts {prompts.name}; leave --prompts out, or name the right set"
            )
        missing = known.filter(~pl.col(by).is_in(rows[by].drop_nulls().implode()))[by].n_unique()
        if foreign:
            notes.append(
                f"{label}: {foreign:,} prompts are not in {prompts.name}; they are a domain of their own"
            )
        if missing:
            notes.append(f"{label}: {missing:,} prompts of {prompts.name} have no row")
        elsewhere = pl.lit(f"not in {prompts.name}")
        tables.rows[label] = found.with_columns(
            pl.col("domain").fill_null(elsewhere), pl.col("distribution").fill_null(elsewhere)
        )
    return notes


def _by_text(owners: Mapping[str, _Argument], notes: list[str]) -> bool:
    """Whether prompts are told apart by their text: where only some sources have ids for them."""
    kinds = {owner.parts.explicit for owner in owners.values() if owner.parts is not None}
    if len(kinds) == 2:
        notes.append("prompts are matched by their text: not every source has a prompt_id")
        return True
    return False


def _reference(request: Request, labels: Sequence[str]) -> str:
    if request.reference is None:
        return labels[0]
    wanted = [
        label
        for label in labels
        if label in (request.reference, Path(request.reference).stem, Path(request.reference).name)
    ]
    if not wanted:
        raise ConfigError(
            f"--reference {request.reference}: is none of the sources; {registry.suggest(request.reference, labels)}"
        )
    return wanted[0]


def _not_shared(pair: Any) -> list[str]:
    said = [
        (pair.only_source, f"of {pair.source} are not in {pair.reference}"),
        (pair.only_reference, f"of {pair.reference} are not in {pair.source}"),
        (pair.other_prompt, f"have another text in {pair.source} than in {pair.reference} under the same id"),
    ]
    if pair.reason is not None:
        return [f"{pair.source} is not compared with {pair.reference}: {pair.reason}"]
    return [f"{number:,} prompts {words}: left out of the comparison" for number, words in said if number]


def _source(
    label: str, owner: _Argument | None, rows: pl.DataFrame | None, error: str | None
) -> dict[str, Any]:
    parts = owner.parts if owner is not None else None
    return {
        "source": label, "kind": owner.source.kind if owner is not None else "model", "status": "ok" if error is None else "failed",
        "error": error, "sha256": owner.sha256 if owner is not None else None, "columns": parts.told if parts is not None else None,
        "counts": {}, "metrics": {}, "domains": {}, "corrected": {},
    }  # fmt: skip


def _sample(scorer: Scorer, labelled: pl.DataFrame, request: Request) -> Labelled | str:
    """What the scorer says of the labelled texts, or why that tells nothing of its errors."""
    scores = scorer.judge.score(labelled["text"].to_list())
    try:
        return labelled_of(
            scores, labelled["label"].to_list(), threshold=request.threshold, where=str(request.labelled)
        )
    except DataError as error:
        return str(error)


def _corrected(
    waiting: tuple[Judged, dict[tuple[str, str, str], RatioMean]],
    sample: Labelled | str,
    pool: Pool,
    request: Request,
) -> dict[str, Any]:
    """The share of texts above the threshold over all prompts alike, corrected; null with a reason where that cannot be."""
    part, statistics = waiting
    statistic = statistics.get(("share", "scope", POOLED), statistics["share", "scope", "all"])
    numbers = entry(statistic, pool.of(statistic))
    made = {
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "observed": numbers["value"],
        "sensitivity": None,
        "specificity": None,
    }
    if isinstance(sample, str) or numbers["value"] is None:
        return made | {"reason": sample if isinstance(sample, str) else "no score"}
    made |= {
        "sensitivity": sample.sensitivity,
        "specificity": sample.specificity,
        "labelled": len(sample.truths),
    }
    try:
        found = corrected_share(
            numbers["value"], sample, n=statistic.n, draws=pool.of(statistic), method=request.correction,  # type: ignore[arg-type]
        )  # fmt: skip
    except DataError as error:
        return made | {"reason": str(error)}
    return made | {
        "value": found.value, "ci_low": found.low, "ci_high": found.high, "method": found.method, "clipped": found.clipped,
        "labelled_failed": sample.failed, "n": part.counts["prompts"],
    }  # fmt: skip


def _judge_failures(made: dict[str, Any], notes: list[str]) -> None:
    for scorer, counts in made["counts"].items():
        if not counts["ok"]:
            why = (
                "no row has a text"
                if counts["generations_failed"] == counts["continuations"]
                else "no text has a score"
            )
            made["status"], made["error"] = (
                "failed",
                f"{why} ({counts['failed']:,} of {counts['continuations']:,} failed)",
            )
            notes.append(f"{made['source']}: {made['error']} under {scorer}")
        elif counts["failed_share"] > _MANY_FAILED:
            notes.append(
                f"{made['source']}: {counts['failed_share']:.1%} of the texts failed under {scorer}; the numbers describe the rest"
            )
        if counts["prompts_without_score"] and counts["ok"]:
            notes.append(
                f"{made['source']}: {counts['prompts_without_score']:,} prompts have no score under {scorer} and are left out"
            )


def _uneven(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """TP and EMT are of the worst of a prompt's texts, and so grow with their number."""
    spans = {
        row["source"]: next(iter(row["counts"].values()))["continuations_per_prompt"]
        for row in rows
        if row["counts"]
    }
    said = [
        f"{source}: prompts have {span['least']} to {span['most']} texts; TP and EMT grow with their number"
        for source, span in spans.items() if span["least"] != span["most"]
    ]  # fmt: skip
    if len({span["most"] for span in spans.values()}) > 1:
        counts = ", ".join(f"{source} {span['most']}" for source, span in spans.items())
        said.append(
            f"texts a prompt differ between sources ({counts}): TP and EMT grow with their number; compare mean and share instead"
        )
    return said


def _write(
    out: Path,
    results: Mapping[str, Any],
    arguments: Sequence[_Argument],
    tables: _Tables,
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
