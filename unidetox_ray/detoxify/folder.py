"""The folder that `detoxify` leaves: put together beside its place, and moved there whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import MANIFEST, write_json, write_text
from unidetox_ray.detoxify.asked import Asked
from unidetox_ray.detoxify.card import card
from unidetox_ray.detoxify.licences import licence_files
from unidetox_ray.families.bottleneck import moved

#: Of the training, not of the model.
_LEFT = {"train_log.parquet", "settings.json", "README.md", MANIFEST, "adapter"}
FACTS = "detoxify.json"


def appear(asked: Asked, made: Path, facts: Mapping[str, Any]) -> None:
    """The folder, whole, at `asked.out`; nothing is there while it is put together. made: the finished training's."""
    out = asked.out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        names = {path.name for path in made.iterdir() if not path.name.startswith(".")} - _LEFT
        if asked.keep_adapter:
            for path in (made / "adapter").iterdir():
                if path.name != "README.md":
                    shutil.copyfile(path, new / path.name)
            names = {
                name for name in names if "token" in name or Path(name).suffix in {".jinja", ".txt", ".model"}
            }
        for name in sorted(names):
            _place(made / name, new / name)
        base = Path(asked.model).expanduser()
        for path in licence_files(base) if base.is_dir() else []:
            shutil.copyfile(path, new / path.name)
        if asked.adapter == "bottleneck":
            moved(new, out)
        write_json(new / FACTS, facts)
        write_text(new / "README.md", card(facts))
        if out.is_dir():
            out.rmdir()  # empty: it was looked at in the beginning, and a filled one stays and is an error here
        os.replace(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _place(source: Path, target: Path) -> None:
    """Weights are linked where the file system can: a second copy of 13 GB is none."""
    if source.is_dir():
        shutil.copytree(source, target)
        return
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
