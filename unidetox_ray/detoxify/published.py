"""The 640 texts that the authors of UniDetox published, fetched once, the very bytes: Lu et al., ICLR 2025, Apache-2.0."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from itertools import islice
from pathlib import Path

import requests

from unidetox_ray.artifacts import atomic_path, file_sha256, private_folder
from unidetox_ray.errors import DataError

FILE = "generated_texts_alpha=0.1_beta=inf_checkpoint-15126.csv"
SHA256 = "ba537cd7d234b76f2cd698f70befd0868241ba9fdf8e959933d213575b43ec2b"
LICENCE = "Apache-2.0"
SOURCE = "https://raw.githubusercontent.com/EminLU/UniDetox/570b90c8a54574486acbd67d077af35c29f85b46/distilled_text"
#: Where a data root has it (docs/data.md).
_BELOW_ROOT = Path("unidetox") / FILE
_LARGEST, _PIECE = 8 << 20, 1 << 16
_PATIENCE_S = 60


def published(data_root: Path | None = None, *, source: str = SOURCE) -> Path:
    """The file: below `data_root` where it lies there, else in this user's cache, else fetched from `source`.

    DataError: it cannot be fetched, or what came is not the file.
    """
    if data_root is not None and (place := data_root.expanduser() / _BELOW_ROOT).is_file():
        return _checked(place)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = home / "unidetox_ray" / "corpora" / FILE
    if cached.is_file():
        return _checked(cached)
    address = f"{source}/{urllib.parse.quote(FILE)}"
    try:
        with requests.get(address, timeout=_PATIENCE_S, stream=True) as answer:
            answer.raise_for_status()
            content = b"".join(islice(answer.iter_content(_PIECE), _LARGEST // _PIECE))
    except OSError as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"--corpus published: {address} cannot be fetched ({reason}); go online, or "
            f"give a folder that holds {_BELOW_ROOT} with --data-root, or the file itself with --corpus"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(
            f"--corpus published: {address} gave another file (SHA-256 {found[:16]}…, not {SHA256[:16]}…); give the file itself"
        )
    private_folder(cached.parent)
    with atomic_path(cached) as temporary:
        temporary.write_bytes(content)
    return cached


def _checked(place: Path) -> Path:
    found = file_sha256(place)
    if found != SHA256:
        raise DataError(
            f"{place}: is not the published file (SHA-256 {found[:16]}…, not {SHA256[:16]}…); remove it, or give it with --corpus"
        )
    return place
