"""The folder of a decoding method's fit, before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unidetox_ray.errors import ModelError


def facts_of_fit(method: str, folder: Path | None, needless: str, name: str) -> tuple[Path, dict[str, Any]]:
    """(folder, what its file `name` says of the fit). needless: the setting with which none is needed, for the message.

    ModelError where there is none.
    """
    from unidetox_ray.artifacts import read_json

    if folder is None:
        raise ModelError(
            f"{method}: no fit is given, and only {needless} needs none; run the stage that makes it"
        )
    return folder, read_json(folder / name)


def refuse_other_fit(method: str, folder: Path, facts: dict[str, Any], base: Any, settings: Any) -> None:
    """ModelError, unless the fit is of this very base model and was made with these settings."""
    from unidetox_ray.core.identity import model_identity

    if facts["model_identity"] != model_identity(base):
        raise ModelError(
            f"{method}: the fit in {folder.name} was made on other weights than this model's; make the fit on this model"
        )
    for name, value in facts["settings"].items():
        if value != getattr(settings, name):
            raise ModelError(
                f"{method}: the fit in {folder.name} was made with {name} {value}, the settings say {getattr(settings, name)}; "
                "make the fit with these settings"
            )
