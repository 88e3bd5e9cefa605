"""Verbs that show what is there: names, the schema, speed, the tracked runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unidetox_ray import registry
from unidetox_ray.cli import completion
from unidetox_ray.cli.app import app
from unidetox_ray.cli.options import Json

if TYPE_CHECKING:
    import subprocess


@app.command("ls")
def list_names(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="families, methods, metrics or datasets.", autocompletion=completion.kinds
        ),
    ],
    as_json: Json = False,
) -> None:
    """What is registered under a kind."""
    found = {name: about(registry.lookup(kind, name)) for name in registry.names(kind)}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        width = max(map(len, found))
        typer.echo("\n".join(f"{name:<{width}}  {about}" for name, about in found.items()))


def about(thing: Any) -> str:
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
        str,
        typer.Argument(
            metavar="NAME",
            help="decode, generate, score, finetune or pipeline.",
            autocompletion=completion.benchmarks,
        ),
    ],
    as_json: Json = False,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", help="Shape of the models: tiny, gpt2, gpt2-xl or 7b.", autocompletion=completion.sizes
        ),
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
    save_rates: Annotated[
        Path | None,
        typer.Option(
            "--save-rates", metavar="FILE", help="Put the measurement into a file for `plan --rates`."
        ),
    ] = None,
) -> None:
    """Speed on this machine, against the plain loop and the hardware's limit. Random weights: no download."""
    from unidetox_ray.bench.options import Options
    from unidetox_ray.bench.verb import report

    options = Options(
        size=size, device=device, dtype=dtype, batch=batch, texts=texts, tokens=tokens, repeats=repeats, patience=patience,
        threads=threads, plain=plain, kind=kind, experiment=experiment, cache=cache, actors=actors,
    )  # fmt: skip
    if save_rates is None:
        typer.echo(report(name, options, as_json=as_json))
        return
    from unidetox_ray.plan.measure import add, savable

    savable(name, options)
    typer.echo(report(name, options, as_json=as_json, then=lambda result: add(save_rates, result)))


@app.command()
def ui(
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri",
            help="Tracking store; default: mlruns/mlflow.db under the current folder. Of a server only the address is shown.",
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", help="Open on this experiment's runs; default: the one recorded last."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser", help="Also open the address in the browser, once the page answers.")
    ] = False,
) -> None:
    """The MLflow pages on loopback, until Ctrl-C. The address shown opens on the chart of families and methods."""
    import subprocess

    from unidetox_ray.tracking import ui_command, ui_environment, ui_url

    store = uri or f"sqlite:///{Path('mlruns/mlflow.db').absolute()}"
    served = store.startswith(("http://", "https://"))
    command = [] if served else ui_command(store, port)
    address = ui_url(store, experiment, port)
    typer.echo(f"MLflow: {address}", err=True)
    if served:
        if browser:
            typer.launch(address)
        return
    server = subprocess.Popen(command, env={**os.environ, **ui_environment()})
    try:
        if browser and _answers(server, port):
            typer.launch(address)
        code = server.wait()
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait()
    raise typer.Exit(code)


def _answers(server: subprocess.Popen[bytes], port: int, seconds: float = 60.0) -> bool:
    """Whether the page's port takes connections within `seconds`, the server being alive."""
    import socket
    import time

    until = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
        except OSError:
            time.sleep(0.3)
    return False
