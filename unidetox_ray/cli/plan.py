"""`unidetox plan`: what an experiment needs, before it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unidetox_ray.cli.app import app
from unidetox_ray.cli.options import Json, Limit, Overrides
from unidetox_ray.errors import EXIT_USER_ERROR, ConfigError


@app.command()
def plan(
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPERIMENT", help="Experiment file, for example experiments/single_a100.yaml."
        ),
    ] = None,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="KIND:COUNT",
            help="Devices to plan for, for example a100-80:8, h200 or cpu:2; default: the cluster at RAY_ADDRESS, else this machine.",
        ),
    ] = None,
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the plan as a page.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Also on 1, 2, 4 … 1,000 devices: where scaling ends, and why.")
    ] = False,
    price: Annotated[
        float | None, typer.Option("--price", min=0.0, help="Of a device for an hour, in any currency.")
    ] = None,
    limit: Limit = None,
    rates: Annotated[
        Path | None,
        typer.Option("--rates", metavar="FILE", help="Rates of one's own, laid over those of the package."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure this machine's rates first, a few minutes, and plan with them."
        ),
    ] = False,
    save_rates: Annotated[
        Path | None,
        typer.Option("--save-rates", metavar="FILE", help="With --measure: keep them for --rates."),
    ] = None,
) -> None:
    """What a run takes: memory, disk, time, a schedule. Nothing is run, downloaded or written.

    Exit codes: 0 the plan can be followed, 2 something does not fit (one line each, with the setting that makes it fit).
    """
    from unidetox_ray.config import load
    from unidetox_ray.plan import console, devices, page, planning, scaling

    if save_rates is not None and not measure:
        raise ConfigError("--save-rates keeps what --measure measures; add --measure")
    table = devices.stored() if rates is None else devices.read_table(rates)
    if measure:
        from unidetox_ray.display import TerminalDisplay
        from unidetox_ray.plan.measure import measured, save

        entry = measured(table, TerminalDisplay())
        table["kinds"][entry.kind] = entry.values
        if save_rates is not None:
            save(save_rates, entry)
            typer.echo(f"rates: {save_rates}", err=True)
        if experiment is None:
            typer.echo(json.dumps(entry.values, indent=1) if as_json else entry.told())
            return
    if experiment is None:
        raise ConfigError("plan: name an experiment file, for example experiments/tiny.yaml")
    loaded = load(experiment, overrides or [], limit=limit)
    fleet = devices.parse(gpus, table) if gpus is not None else devices.at_hand(loaded, table)
    made = planning.plan(loaded, fleet, price=price, table=table)
    sizes = scaling.simulated(loaded, fleet) if simulate else None
    if html is not None:
        from unidetox_ray.report.files import write

        write(html, page.render(made, sizes))
    if as_json:
        values = made.as_dict()
        if sizes is not None:
            values["scaling"] = sizes.as_dict()
        typer.echo(json.dumps(values, indent=1, allow_nan=False))
    else:
        typer.echo(console.text(made, sizes))
        if html is not None:
            typer.echo(f"page: {html}")
    for problem in made.problems:
        typer.echo(f"does not fit: {problem}", err=True)
    if made.problems:
        raise typer.Exit(EXIT_USER_ERROR)
