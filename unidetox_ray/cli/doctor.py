"""The verb that examines the machine, the cluster and the way to the models before a run is started."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from unidetox_ray.cli.app import app
from unidetox_ray.cli.experiments import load_experiment
from unidetox_ray.cli.options import Json, Limit, Overrides
from unidetox_ray.errors import EXIT_STAGE_FAILED


@app.command()
def doctor(
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPERIMENT",
            help="Experiment file whose models, data, memory, disk and storage are looked at too.",
        ),
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="A running Ray cluster, host:port, whose nodes are asked; default: RAY_ADDRESS."
        ),
    ] = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """What stands in the way of a run here, line by line, each with its remedy. Exit code 1 if any line failed."""
    from unidetox_ray.doctor import examine, subject_of, text

    loaded = load_experiment(experiment, overrides, limit) if experiment is not None else None
    lines = examine(subject_of(loaded, address))
    typer.echo(json.dumps([asdict(line) for line in lines], indent=1) if as_json else text(lines))
    if any(line.status == "fail" for line in lines):
        raise typer.Exit(EXIT_STAGE_FAILED)
