"""Verbs on an experiment file and on the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unidetox_ray import registry
from unidetox_ray.cli import completion
from unidetox_ray.cli.app import app
from unidetox_ray.cli.options import ExperimentFile, Fresh, Limit, Overrides, ShowText
from unidetox_ray.errors import ConfigError

if TYPE_CHECKING:
    from unidetox_ray.config import Experiment
    from unidetox_ray.pipeline import Result


@app.command()
def run(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="STAGE",
            autocompletion=completion.stages,
            help="Stop after: models, toxic, corpus, search, finetune, generate, score or report.",
        ),
    ] = "report",
    limit: Limit = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything that can be checked and print the plan; start nothing, write nothing.",
        ),
    ] = False,
    fresh: Fresh = False,
) -> None:
    """Run an experiment. The same command again resumes: finished work is not done twice.

    Exit codes: 0 done, 1 a stage failed, 2 a mistake in what was given, 3 some cells failed and the rest are reported.
    """
    loaded = load_experiment(experiment, overrides, limit)
    if dry_run:
        from unidetox_ray.dryrun import describe

        typer.echo(describe(loaded))
        return
    result = execute(loaded, until, fresh)
    summary(result)
    raise typer.Exit(result.exit_code)


@app.command()
def search(
    experiment: ExperimentFile, overrides: Overrides = None, limit: Limit = None, fresh: Fresh = False
) -> None:
    """Ray Tune over the experiment's `search:` section; ends in search_report.html and the best setting as YAML."""
    loaded = load_experiment(experiment, overrides, limit)
    if loaded.search is None:
        raise ConfigError(f"{experiment}: has no `search:` section; add one with steps and lr lists")
    result = execute(loaded, "search", fresh)
    assert result.search is not None
    from unidetox_ray.artifacts import write_text
    from unidetox_ray.report.search import best_yaml, build_search

    page = build_search(result.folder)
    text = best_yaml(result.search)
    write_text(result.folder / "best.yaml", text)
    typer.echo(text, nl=False)
    typer.echo(f"report: {page}")


@app.command()
def distill(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the corpus here (.parquet, .csv or .jsonl).")
    ] = None,
    limit: Limit = None,
    fresh: Fresh = False,
) -> None:
    """Toxic model and corpora of an experiment, and no further."""
    from unidetox_ray.corpus_files import write_corpus

    result = execute(load_experiment(experiment, overrides, limit), "corpus", fresh)
    corpus = result.folder / "corpus.parquet"
    if not corpus.exists():
        raise ConfigError(
            f"{experiment}: names no corpus method, so there is nothing to distil; add unidetox to methods"
        )
    if out is not None:
        write_corpus(corpus, out)
    typer.echo(f"corpus: {out or corpus}")


@app.command()
def report(
    run_folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Run folder, for example outputs/tiny.", autocompletion=completion.run_folders
        ),
    ],
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="RUN|FILE",
            help="Compare with this run, or with a file of --save-baseline: speed-up, efficiency, cost.",
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", min=0.0, help="With --baseline: of a device for an hour, in any currency."),
    ] = None,
    baseline_price: Annotated[
        float | None,
        typer.Option("--baseline-price", min=0.0, help="Of the baseline's devices, where it is another."),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(
            "--save-baseline", metavar="FILE", help="Write what the run took as a portable JSON file."
        ),
    ] = None,
    show_text: ShowText = False,
) -> None:
    """Rebuild tables and plots of a run from its stored files; needs no GPU and no model."""
    from unidetox_ray.report import baseline as baselines
    from unidetox_ray.report import baseline_sections, build
    from unidetox_ray.results import read_results
    from unidetox_ray.table import leaderboard

    if not (run_folder / "config.yaml").exists():
        raise ConfigError(
            f"{run_folder}: holds no config.yaml; give the folder of a run, such as outputs/tiny"
        )
    if baseline is None and (price is not None or baseline_price is not None):
        raise ConfigError("--price and --baseline-price are of a comparison; add --baseline RUN or FILE")
    comparison = None
    if baseline is not None:
        comparison = baselines.compared(
            baselines.costs_of_run(run_folder),
            baselines.read(baseline),
            price=price,
            base_price=baseline_price,
        )
    if save_baseline is not None:
        typer.echo(f"baseline: {baselines.save(run_folder, save_baseline)}")
    paths = build(run_folder, show_text=show_text, comparison=comparison)
    if (run_folder / "results.json").exists() and (ranking := leaderboard(read_results(run_folder))):
        typer.echo(ranking)
    if comparison is not None:
        typer.echo(baseline_sections.console(comparison))
    typer.echo(f"report: {paths.html}\n        {paths.markdown}")


def load_experiment(path: str, overrides: list[str] | None, limit: int | None = None) -> Experiment:
    from unidetox_ray.config import load

    return load(path, overrides or [], limit=limit)


def execute(experiment: Experiment, until: str, fresh: bool) -> Result:
    from unidetox_ray.display import TerminalDisplay
    from unidetox_ray.pipeline import run

    if until not in registry.STAGES:
        raise ConfigError(f"--until = {until!r}; {registry.suggest(until, registry.STAGES)}")
    return run(experiment, until=until, fresh=fresh, display=TerminalDisplay())


def summary(result: Result) -> None:
    for row in result.failed:
        typer.echo(f"failed: {row['cell']}: {row['error']}", err=True)
    if result.rows:
        from unidetox_ray.table import headline, leaderboard

        typer.echo(headline(result.rows))
        if ranking := leaderboard(result.rows):
            typer.echo(f"\n{ranking}")
    reused = sum(bool(stage["reused"]) for stage in result.stages)
    typer.echo(f"{result.folder}: {len(result.stages)} stages, {reused} reused, {result.seconds:.1f} s")
    if (result.folder / "report.html").exists() and result.rows:
        typer.echo(f"report: {result.folder / 'report.html'}")
