"""Verbs that do one step alone, on given files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unidetox_ray.cli.app import app
from unidetox_ray.cli.options import Json, Limit, ShowText


@app.command()
def finetune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id or folder of the model to fine-tune.")
    ],
    corpus: Annotated[
        Path,
        typer.Option(
            "--corpus", help="Text to train on, column text or Text: .csv, .tsv, .jsonl, .json or .parquet."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the fine-tuned model; it must not hold one yet.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of `finetune:`, for example steps=500 lr=1e-5."),
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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of the model.")],
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts",
            help="Prompts: .jsonl, .csv, .tsv, .json or .parquet with a column `prompt` (and `domain` if there are several).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the continuations go (.parquet or .jsonl).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of `evaluate:`, for example continuations=5."),
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
        Path,
        typer.Argument(
            metavar="FILE", help="Continuations: .parquet, .jsonl or .csv with columns prompt_id and text."
        ),
    ],
    scorer: Annotated[
        str, typer.Option("--scorer", help="Toxicity classifier: a scorer's name, hub id or folder.")
    ] = "toxic-bert",
    label: Annotated[
        str | None, typer.Option("--label", help="The classifier's label that means toxic; default: toxic.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Hub revision of the classifier.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the scores go (.parquet or .jsonl).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Toxicity of stored continuations: TP and EMT with intervals, failures counted. `evaluate` does more."""
    from unidetox_ray.evaluate.single_file import score_file

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
            metavar="CORPUS", help="Corpus files: .parquet, .csv or .jsonl with `text` or `Text`."
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
