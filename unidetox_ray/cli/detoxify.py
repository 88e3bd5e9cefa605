"""The verb that makes one model less toxic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unidetox_ray.cli.app import app
from unidetox_ray.cli.options import Json, Limit


@app.command()
def detoxify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id or folder of a causal language model.")
    ],
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            metavar="FILE|published|fresh",
            help="Text to train on: a .csv, .jsonl or .parquet file with a column text or Text; published (the authors' 640 "
            "texts, fetched once); fresh (distilled here).",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the new model; it must not hold anything yet.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings: fields of `finetune:` (steps=500 lr=1e-5), others with their section "
            "(evaluate.runs=5 corpus.num_texts=320 toxic.epochs=1).",
        ),
    ] = None,
    adapter: Annotated[
        str,
        typer.Option(
            "--adapter", metavar="none|lora|bottleneck", help="Train all weights, or adapters alone."
        ),
    ] = "none",
    keep_adapter: Annotated[
        bool,
        typer.Option(
            "--keep-adapter", help="With --adapter lora: leave the peft adapter, not the merged model."
        ),
    ] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub revision of the model.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE|NAME",
            help="Prompts to measure with: a file with a column prompt, or a data set's name. Default: toxigen.",
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            metavar="MODEL|WORDS.txt",
            help="Toxicity classifier (a pinned one's name, hub id or folder), or a list of words. Default: toxic-bert.",
        ),
    ] = None,
    scorer_label: Annotated[
        str | None,
        typer.Option("--scorer-label", help="The classifier's label that means toxic. Default: toxic."),
    ] = None,
    scorer_revision: Annotated[
        str | None, typer.Option("--scorer-revision", help="Hub revision of the classifier.")
    ] = None,
    clean: Annotated[
        str | None,
        typer.Option(
            "--clean", metavar="FILE", help="Clean text to measure perplexity on, before and after."
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure before and after.")
    ] = True,
    distil_from: Annotated[
        str | None,
        typer.Option(
            "--distil-from",
            metavar="MODEL",
            help="With --corpus fresh: the model to distil from. Default: MODEL itself.",
        ),
    ] = None,
    toxic: Annotated[
        str | None,
        typer.Option("--toxic", metavar="FILE|NAME", help="With --corpus fresh: toxic text. Default: dghs."),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder with local copies of the data sets (docs/data.md)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the texts and of dropout.")] = 1234,
    limit: Limit = None,
    keep_work: Annotated[
        bool,
        typer.Option("--keep-work", help="Keep the work folder beside --out: generations, scores, logs."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune any causal language model on a detoxifying corpus, measure it before and after, and write a card.

    The same command again goes on where it ended.
    """
    from unidetox_ray.detoxify.asked import Asked
    from unidetox_ray.detoxify.card import table, verdict
    from unidetox_ray.detoxify.run import detoxify as made
    from unidetox_ray.display import TerminalDisplay

    asked = Asked(
        model=model, corpus=corpus, out=out, overrides=tuple(overrides or ()), revision=revision, adapter=adapter,
        keep_adapter=keep_adapter, seed=seed, evaluate=evaluate, prompts=prompts, scorer=scorer, scorer_label=scorer_label,
        scorer_revision=scorer_revision, clean=clean, distil_from=distil_from, toxic=toxic, data_root=data_root, limit=limit,
        keep_work=keep_work,
    )  # fmt: skip
    facts = made(asked, TerminalDisplay())
    if as_json:
        typer.echo(json.dumps(facts, indent=1, default=str))
        return
    typer.echo(f"model: {out}")
    if facts["evaluation"] is None:
        return
    metrics = facts["evaluation"]["metrics"]
    for name, before, after, difference, n in table(metrics):
        typer.echo(f"{name}: {before} before, {after} after, difference {difference}, n {n}")
    typer.echo(verdict(metrics))
