"""The arguments that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from unidetox_ray.cli import completion

ExperimentFile = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="Experiment file, for example experiments/tiny.yaml.",
        autocompletion=completion.experiment_files,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that override the file's, for example finetune.lr=1e-5.",
        autocompletion=completion.overrides,
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
