"""The command itself: its name, its help and the options before the verb."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from unidetox_ray import __version__

app = typer.Typer(
    name="unidetox",
    help="Detoxify causal language models and measure it: UniDetox and its rivals, on one machine or a Ray cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
