"""`unidetox export`: a finished model of a run, copied out with its card. Nothing is uploaded anywhere."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from unidetox_ray.artifacts import MANIFEST, finished, read_json, read_manifest
from unidetox_ray.errors import ArtifactError, ConfigError

#: Of the run, not of the model: the log of its training and the state it resumed from.
_LEFT = {"train_log.parquet", MANIFEST}


def export_model(cell: Path, to: Path, *, allow_toxic: bool = False) -> Path:
    """Copy the model in `cell` to `to`, which must not exist; returns `to`.

    The files are compared with their hashes first. ConfigError: `to` exists, `cell` is no finished model, or it was made to write
    hateful text and allow_toxic is not given. ArtifactError: a file is damaged or was changed.
    """
    if to.exists():
        raise ConfigError(f"--to {to}: exists; name a new folder")
    manifest = read_manifest(cell) if cell.is_dir() else None
    if manifest is None or "config.json" not in manifest.files:
        raise ConfigError(
            f"{cell}: holds no finished model; give a folder such as outputs/tiny/models/gpt2-unidetox-s1234-…"
        )
    finished(cell, manifest.key)
    if is_toxic(cell) and not allow_toxic:
        raise ConfigError(
            f"{cell}: this model was made to write hateful text and is marked do-not-deploy; --allow-toxic copies it all the same"
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        for name in sorted(manifest.files):
            if name in _LEFT or name.startswith("."):
                continue
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cell / name, work / name)
        work.replace(to)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return to


def is_toxic(cell: Path) -> bool:
    """Whether the model's settings or its card say so. A model without either is none of ours: ArtifactError."""
    settings, card = cell / "settings.json", cell / "README.md"
    if not settings.is_file() or not card.is_file():
        raise ArtifactError(
            f"{cell}: holds no settings.json and README.md, so nothing says what this model is; run it again"
        )
    values = read_json(settings)
    marked = bool(values.get("do_not_deploy")) if isinstance(values, dict) else True
    return marked or "do-not-deploy" in card.read_text(encoding="utf-8")
