"""The folder of the task for lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

import typer

import unidetox_ray
from unidetox_ray.cli.app import app


@app.command("harness-path")
def harness_path() -> None:
    """Print the folder for `lm_eval --include_path`; it holds the task unidetox_toxicity."""
    typer.echo(Path(unidetox_ray.__file__).parent / "harness")
