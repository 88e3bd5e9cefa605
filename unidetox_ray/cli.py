"""The `unidetox` command. Verbs are thin: they read settings, call one function, and print what came out.

User mistakes end in one line on standard error and exit code 2 (`--debug` shows the trace).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from unidetox_ray import __version__, registry, secrecy
from unidetox_ray.errors import EXIT_USER_ERROR, ConfigError, UnidetoxError

if TYPE_CHECKING:
    from unidetox_ray.config import Experiment
    from unidetox_ray.pipeline import Result

app = typer.Typer(
    name="unidetox",
    help="Detoxify causal language models and measure it: UniDetox and its rivals, on one machine or a Ray cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ExperimentFile = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="Experiment file, for example experiments/tiny.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that override the file's, for example finetune.lr=1e-5."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        metavar="N",
        help="Smoke run: at most N corpus texts, prompts per split, questions and clean texts.",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Forget what earlier runs of this experiment made (scratch models stay cached)."
    ),
]
ShowText = Annotated[
    bool, typer.Option("--show-text", help="Show text that can be hateful instead of masking it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"unidetox {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole trace of an error and the workers' output.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["UNIDETOX_DEBUG"] = "1"


def _load(path: str, overrides: list[str] | None, limit: int | None = None) -> Experiment:
    from unidetox_ray.config import load

    return load(path, overrides or [], limit=limit)


def _execute(experiment: Experiment, until: str, fresh: bool) -> Result:
    from unidetox_ray.display import TerminalDisplay
    from unidetox_ray.pipeline import STAGES, run

    if until not in STAGES:
        raise ConfigError(f"--until = {until!r}; {registry.suggest(until, STAGES)}")
    return run(experiment, until=until, fresh=fresh, display=TerminalDisplay())


@app.command()
def run(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="STAGE",
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
    loaded = _load(experiment, overrides, limit)
    if dry_run:
        from unidetox_ray.dryrun import describe

        typer.echo(describe(loaded))
        return
    result = _execute(loaded, until, fresh)
    _summary(result)
    raise typer.Exit(result.exit_code)


@app.command()
def search(
    experiment: ExperimentFile, overrides: Overrides = None, limit: Limit = None, fresh: Fresh = False
) -> None:
    """Ray Tune over the experiment's `search:` section; ends in search_report.html and the best setting as YAML."""
    loaded = _load(experiment, overrides, limit)
    if loaded.search is None:
        raise ConfigError(f"{experiment}: has no `search:` section; add one with steps and lr lists")
    result = _execute(loaded, "search", fresh)
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

    result = _execute(_load(experiment, overrides, limit), "corpus", fresh)
    corpus = result.folder / "corpus.parquet"
    if not corpus.exists():
        raise ConfigError(
            f"{experiment}: names no corpus method, so there is nothing to distil; add unidetox to methods"
        )
    if out is not None:
        write_corpus(corpus, out)
    typer.echo(f"corpus: {out or corpus}")


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(help="Hub id or folder of the model to fine-tune.")],
    corpus: Annotated[
        Path,
        typer.Option("--corpus", help="Text to train on: .csv (column Text or text), .jsonl or .parquet."),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the fine-tuned model; it must not hold one yet.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Fields of `finetune:`, for example steps=500 lr=1e-5."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of the texts and of dropout.")] = 1234,
) -> None:
    """Fine-tune one model on one corpus with the experiment's own training stage."""
    from unidetox_ray.display import TerminalDisplay
    from unidetox_ray.single import finetune_one

    folder = finetune_one(model, corpus, out, overrides or [], seed=seed, display=TerminalDisplay())
    typer.echo(f"model: {folder}")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of the model.")],
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts",
            help="Prompts: .jsonl, .csv or .parquet with a column `prompt` (and `domain` if there are several).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the continuations go (.parquet or .jsonl).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of `evaluate:`, for example continuations=5."),
    ] = None,
    limit: Limit = None,
) -> None:
    """Continue prompts with one model under the protocol's sampling."""
    from unidetox_ray.display import TerminalDisplay
    from unidetox_ray.single import generate_one

    rows = generate_one(model, prompts, out, overrides or [], limit=limit, display=TerminalDisplay())
    typer.echo(f"{rows} continuations: {out}")


@app.command()
def score(
    generations: Annotated[
        Path, typer.Argument(help="Continuations: .parquet, .jsonl or .csv with columns prompt_id and text.")
    ],
    scorer: Annotated[
        str, typer.Option("--scorer", help="Toxicity classifier: hub id or folder.")
    ] = "unitary/toxic-bert",
    label: Annotated[str, typer.Option("--label", help="The classifier's label that means toxic.")] = "toxic",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Hub revision of the classifier.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the scores go (.parquet or .jsonl).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Toxicity of stored continuations: TP and EMT with intervals, failures counted."""
    from unidetox_ray.single import score_file

    values = score_file(generations, scorer, label=label, revision=revision, out=out)
    typer.echo(
        json.dumps(values, indent=1)
        if as_json
        else "\n".join(f"{name}: {value}" for name, value in values.items())
    )


@app.command()
def content(
    corpora: Annotated[
        list[Path],
        typer.Argument(
            metavar="CORPUS CORPUS...", help="Corpus files: .parquet, .csv or .jsonl with `text` or `Text`."
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Which of them the others are compared with; default: the first."),
    ] = None,
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            "--classifier",
            metavar="MODEL",
            help="Text-classification model: hub id or folder; may be repeated.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Hub revision of the classifier.")
    ] = None,
    show_text: ShowText = False,
    as_json: Json = False,
) -> None:
    """What corpora hold: length, repetition, overlap, distinctive words, and labels of any text classifier."""
    from unidetox_ray.content_files import content_of, masked, table
    from unidetox_ray.display import TerminalDisplay

    value = content_of(
        corpora,
        reference=reference,
        classifiers=classifier or [],
        revision=revision,
        display=TerminalDisplay(),
    )
    shown = value if show_text else masked(value)
    typer.echo(json.dumps(shown, indent=1) if as_json else table(value, show_text=show_text))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, for example outputs/tiny.")],
    show_text: ShowText = False,
) -> None:
    """Rebuild tables and plots of a run from its stored files; needs no GPU and no model."""
    from unidetox_ray.report import build
    from unidetox_ray.results import read_results
    from unidetox_ray.table import leaderboard

    if not (run_folder / "config.yaml").exists():
        raise ConfigError(
            f"{run_folder}: holds no config.yaml; give the folder of a run, such as outputs/tiny"
        )
    paths = build(run_folder, show_text=show_text)
    if (run_folder / "results.json").exists() and (ranking := leaderboard(read_results(run_folder))):
        typer.echo(ranking)
    typer.echo(f"report: {paths.html}\n        {paths.markdown}")


@app.command()
def convert(
    model: Annotated[
        str, typer.Argument(help="Folder or hub id of a model whose weights are .bin (pickle) files.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; it must not exist.")],
    sha256: Annotated[
        list[str] | None,
        typer.Option("--sha256", metavar="HASH", help="SHA-256 of a .bin file you trust; once for each."),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub revision of the model.")] = None,
) -> None:
    """Pickled weights to safetensors, in a process of its own that reads numbers and nothing else."""
    from unidetox_ray.convert import convert as converted

    made = converted(model, out, sha256 or [], revision=revision)
    for name, digest in made["files"].items():
        typer.echo(f"{name}: sha256 {digest}")
    typer.echo(f"model: {made['folder']} ({made['tensors']} tensors)")


@app.command()
def export(
    cell: Annotated[
        Path,
        typer.Argument(metavar="CELL", help="Folder of a model in a run, for example outputs/tiny/models/…."),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist.")],
    allow_toxic: Annotated[
        bool, typer.Option("--allow-toxic", help="Also a model that was made to write hateful text.")
    ] = False,
) -> None:
    """Copy a finished model out of a run, with its card, checked against its hashes. Nothing is uploaded."""
    from unidetox_ray.exporting import export_model

    typer.echo(f"model: {export_model(cell, to, allow_toxic=allow_toxic)}")


@app.command("ls")
def list_names(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="families, methods, metrics or datasets.")],
    as_json: Json = False,
) -> None:
    """What is registered under a kind."""
    found = {name: _about(registry.lookup(kind, name)) for name in registry.names(kind)}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        width = max(map(len, found))
        typer.echo("\n".join(f"{name:<{width}}  {about}" for name, about in found.items()))


def _about(thing: Any) -> str:
    for attribute in ("summary", "description", "hub_id", "citation", "licence"):
        value = getattr(thing, attribute, None)
        if value:
            return str(value)
    return ""


@app.command()
def schema() -> None:
    """JSON schema of the experiment file, for editors."""
    from unidetox_ray.config import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(), indent=1))


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="decode, generate, score, finetune or pipeline.")
    ],
    as_json: Json = False,
    size: Annotated[
        str | None, typer.Option("--size", help="Shape of the models: tiny, gpt2, gpt2-xl or 7b.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="fp32 or bf16; default: fp32 on a CPU, bf16 on a GPU.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Rows in a batch; score: padded tokens.")
    ] = None,
    texts: Annotated[
        int | None, typer.Option("--texts", help="Sequences, prompts, texts or rows; pipeline: --limit.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="New tokens a sequence; finetune: tokens a row.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Timed runs of each side; the fastest counts.")
    ] = 3,
    patience: Annotated[
        float, typer.Option("--patience", help="Seconds after which a side is not run again.")
    ] = 30.0,
    threads: Annotated[int | None, typer.Option("--threads", help="torch threads on the CPU.")] = None,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Run the plain loop too.")] = True,
    kind: Annotated[
        str, typer.Option("--kind", help="What score measures: toxicity, perplexity or mmlu.")
    ] = "toxicity",
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="Experiment file of pipeline.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Where pipeline keeps its pre-trained models.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option("--actors", help="How many things pipeline lets Ray do at once.")
    ] = None,
) -> None:
    """Speed on this machine, against the plain loop and the hardware's limit. Random weights: no download."""
    from unidetox_ray.bench.options import Options
    from unidetox_ray.bench.verb import report

    options = Options(
        size=size, device=device, dtype=dtype, batch=batch, texts=texts, tokens=tokens, repeats=repeats, patience=patience,
        threads=threads, plain=plain, kind=kind, experiment=experiment, cache=cache, actors=actors,
    )  # fmt: skip
    typer.echo(report(name, options, as_json=as_json))


@app.command()
def ui(
    uri: Annotated[
        str | None,
        typer.Option("--uri", help="Tracking store; default: mlruns/mlflow.db under the current folder."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="Open on this experiment's runs.")
    ] = None,
) -> None:
    """The MLflow pages on loopback, until Ctrl-C."""
    import subprocess

    from unidetox_ray.tracking import ui_command, ui_environment, ui_url

    store = uri or f"sqlite:///{Path('mlruns/mlflow.db').absolute()}"
    typer.echo(f"MLflow: {ui_url(store, experiment, port)}", err=True)
    raise typer.Exit(
        subprocess.run(
            ui_command(store, port), env={**os.environ, **ui_environment()}, check=False
        ).returncode
    )


def _summary(result: Result) -> None:
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


def main() -> NoReturn:
    """Entry point: errors of ours become one line and their exit code."""
    # Python's default for SIGTERM ends without clean-up: tracked runs would stay RUNNING, children alive.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Generated text can be hateful, and Ray and MLflow leave files of their own: they are the user's alone as well.
    os.umask(0o077)
    sys.excepthook = _redacted_trace
    try:
        if (why := secrecy.refused_argument(sys.argv[1:])) is not None:
            raise ConfigError(why)
        # typer turns Ctrl-C into a returned exit code of its own.
        left = app(standalone_mode=False)
        code: Any = left if isinstance(left, int) else 0
        if code == 130:
            typer.echo("unidetox: interrupted; the same command goes on from here", err=True)
    except UnidetoxError as error:
        if os.environ.get("UNIDETOX_DEBUG"):
            raise
        typer.echo(f"unidetox: {error}", err=True)
        code = error.exit_code
    except typer.Exit as leave:
        code = leave.exit_code
    except KeyboardInterrupt:
        typer.echo("unidetox: interrupted; the same command goes on from here", err=True)
        code = 130
    except Exception as error:
        # click's own usage errors carry their words and code; anything else is a defect and keeps its trace.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        code = getattr(error, "exit_code", EXIT_USER_ERROR)
    sys.exit(code)


def _redacted_trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own trace with secrets blanked out: an error of a library may quote a header or an address."""
    sys.stderr.write(secrecy.redacted("".join(traceback.format_exception(kind, error, trace))))
