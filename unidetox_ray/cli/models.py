"""Verbs on folders of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unidetox_ray.cli import completion
from unidetox_ray.cli.app import app


@app.command()
def convert(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder or hub id of a model whose weights are .bin (pickle) files."
        ),
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
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CELL",
            help="Folder of a run (outputs/tiny) or of one model in it (outputs/tiny/models/…).",
            autocompletion=completion.run_folders,
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist.")],
    licence: Annotated[
        str,
        typer.Option("--licence", help="Licence of a run's corpora for their cards, as the Hub spells it."),
    ] = "unknown",
    allow_toxic: Annotated[
        bool, typer.Option("--allow-toxic", help="Also a model that was made to write hateful text.")
    ] = False,
) -> None:
    """Copy corpora and results of a run, or one finished model, out with their cards. Nothing is uploaded."""
    from unidetox_ray.exporting import export_model, export_run

    if (source / "config.yaml").is_file():
        folder, corpora = export_run(source, to, licence=licence)
        typer.echo(f"run: {folder} ({len(corpora)} corpora)")
    else:
        typer.echo(f"model: {export_model(source, to, allow_toxic=allow_toxic)}")
