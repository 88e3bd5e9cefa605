"""The verb that measures the toxicity of any model's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unidetox_ray.cli.app import app
from unidetox_ray.cli.options import Json
from unidetox_ray.errors import EXIT_SOME_CELLS_FAILED, ConfigError


@app.command()
def evaluate(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Model folders, hub ids (org/name[@revision]), or files of generations: .jsonl, .json, .csv, .tsv, .parquet.",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="What models continue: toxigen (default), rtp, rtp-challenging, world or a file.",
        ),
    ] = None,
    prompts_path: Annotated[
        str | None, typer.Option("--prompts-path", help="A local copy of the data set that --prompts names.")
    ] = None,
    prompts_option: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts-option", metavar="KEY=VALUE", help="Option of that data set; may be repeated."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Split of that data set: test or validation.")
    ] = "test",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="At most N prompts, and N rows of a file."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="How models are sampled, fields of `evaluate:`; for example continuations=10.",
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            metavar="SCORER",
            help="toxic-bert (default), another name, a classifier's folder or hub id, words:FILE, "
            "NAME=any of these; may be repeated, the first is the main one.",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="[SCORER:]LABEL", help="Label that means toxic; several joined by +."
        ),
    ] = None,
    label_map: Annotated[
        list[str] | None,
        typer.Option(
            "--label-map",
            metavar="[SCORER:]LABEL=toxic|clean,…",
            help="What every label of a classifier means.",
        ),
    ] = None,
    activation: Annotated[
        str, typer.Option("--activation", help="auto (by the classifier's config), sigmoid or softmax.")
    ] = "auto",
    threshold: Annotated[
        float, typer.Option("--threshold", help="A text with a score above it counts as toxic.")
    ] = 0.5,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="ROLE=NAME",
            help="Which column of the files holds text, prompt, prompt_id, domain, source …",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="SOURCE", help="What the others are compared with; default: the first."
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--resamples", help="Of the bootstrap, at least 10,000.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap and of sampled tests.")] = 0,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", metavar="URL", help="OpenAI-compatible server whose model is evaluated too."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Its model; default: the only one that it lists.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask it in chat form, the prompt being one message.")
    ] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Calls at once.")] = 8,
    key_variable: Annotated[
        str | None,
        typer.Option("--key-variable", metavar="NAME", help="Environment variable that holds its key."),
    ] = None,
    perspective: Annotated[
        Path | None,
        typer.Option(
            "--perspective-scores",
            metavar="FILE",
            help="Stored Perspective scores: a scorer beside the others.",
        ),
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            "--labelled",
            metavar="FILE",
            help="Texts with labels by people, to correct for the scorers' errors.",
        ),
    ] = None,
    correction: Annotated[
        str,
        typer.Option(
            "--correction", help="rogan-gladen, or prediction-powered for a random sample of these texts."
        ),
    ] = "rogan-gladen",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder for scores.parquet, results.json, report.html and report.md."
        ),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(
            "--track", metavar="URI", help="MLflow store; default: mlruns/mlflow.db here; none = no tracking."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Toxicity of any model's text by pinned local scorers: intervals, paired comparison, failures counted."""
    from unidetox_ray.display import TerminalDisplay
    from unidetox_ray.evaluate.generated import Server
    from unidetox_ray.evaluate.outputs import table
    from unidetox_ray.evaluate.verb import Request
    from unidetox_ray.evaluate.verb import evaluate as evaluated

    server = Server(endpoint, model, chat, concurrency, key_variable) if endpoint is not None else None
    if server is None and (model is not None or chat or key_variable is not None):
        raise ConfigError(
            "--model, --chat and --key-variable are of a server: give its address with --endpoint URL"
        )
    results = evaluated(
        Request(
            sources=tuple(sources or ()), scorers=tuple(scorer or ()), labels=tuple(label or ()), label_maps=tuple(label_map or ()),
            activation=activation, threshold=threshold, columns=tuple(column or ()), prompts=prompts, prompts_path=prompts_path,
            prompts_options=tuple(prompts_option or ()), split=split, limit=limit, overrides=tuple(setting or ()),
            reference=reference, samples=samples, seed=seed, endpoint=server, perspective=perspective, labelled=labelled,
            correction=correction, out=out, track=track,
        ),
        TerminalDisplay(),
    )  # fmt: skip
    typer.echo(json.dumps(results, indent=1, sort_keys=True, allow_nan=False) if as_json else table(results))
    if out is not None and not as_json:
        typer.echo(f"files: {out}")
    if any(source["status"] == "failed" for source in results["sources"]):
        raise typer.Exit(EXIT_SOME_CELLS_FAILED)
