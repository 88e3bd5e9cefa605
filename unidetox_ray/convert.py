"""`unidetox convert`: a model whose weights are .bin (pickle) files as a folder with safetensors.

A pickle can hold a program, which runs when it is opened. So nothing else here opens one, and this does only what it must: the
bytes have to match hashes that the user gives, from a source he trusts; a process of its own, without the user's tokens, reads
them with torch's `weights_only=True`; what comes out is plain numbers. Code files of the source are not copied.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unidetox_ray import secrecy
from unidetox_ray.artifacts import file_sha256, write_json
from unidetox_ray.errors import ConfigError, ModelError

INDEX = "pytorch_model.bin.index.json"
#: What goes along: configuration and tokenizer, never code or pickles.
_BESIDE = {".json", ".txt", ".model", ".jinja"}


def convert(source: str, out: Path, hashes: Sequence[str], *, revision: str | None = None) -> dict[str, Any]:
    """Convert a model folder or hub id to `out`, which must not exist. Returns {folder, tensors, files: name -> sha256}.

    hashes: the SHA-256 of every .bin file, in any order. ConfigError: out exists, hashes missing or malformed. ModelError: no
    such model, no pickled weights, other bytes than the hashes say, or a file that holds more than tensors. Nothing is left
    where it fails.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: exists; name a new folder")
    wanted = [value.lower() for value in hashes]
    for value in wanted:
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise ConfigError(f"--sha256 {value[:80]!r}: is no SHA-256; it has 64 hexadecimal digits")
    folder = _folder(source, revision)
    weights = _weights(folder, source)
    found = {path: file_sha256(path) for path in weights}
    if not wanted:
        listed = ", ".join(f"{path.name} {digest}" for path, digest in found.items())
        raise ConfigError(
            f"convert {source}: give --sha256 once for each .bin file, from the model's page or its author; the files here have "
            f"{listed}, which says nothing about who made them"
        )
    for path, digest in found.items():
        if digest not in wanted:
            raise ModelError(
                f"{path}: hashes to {digest}, which is none of the --sha256 given; it is not the file you trust"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        tensors = _in_own_process(found, work, source)
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in _BESIDE and path.name != INDEX:
                shutil.copyfile(path, work / path.name)
        written = {name: file_sha256(work / name) for name in tensors}
        if len(tensors) > 1:
            size = sum((work / name).stat().st_size for name in tensors)
            weight_map = {tensor: name for name, names in tensors.items() for tensor in names}
            write_json(
                work / "model.safetensors.index.json",
                {"metadata": {"total_size": size}, "weight_map": weight_map},
            )
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"folder": str(out), "tensors": sum(map(len, tensors.values())), "files": written}


def _folder(source: str, revision: str | None) -> Path:
    """The folder given, or a hub model's files fetched into the hub's cache."""
    from unidetox_ray.families.loading import local_folder

    return local_folder(source, revision, pickles=True)


def _weights(folder: Path, source: str) -> list[Path]:
    """The .bin files of the weights, in the order of their names."""
    if any(folder.glob("*.safetensors")):
        raise ModelError(f"{source}: has .safetensors weights, which need no conversion; give it as it is")
    index = folder / INDEX
    names = {"pytorch_model.bin"}
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{index}: is damaged; copy the folder again") from None
    for name in sorted(map(str, names)):
        # An index from a stranger must not name a file elsewhere.
        if Path(name).name != name or not name.endswith(".bin"):
            raise ModelError(f"{index}: names {name[:80]!r}, which is no .bin file of its own folder")
        if not (folder / name).is_file():
            raise ModelError(
                f"{source}: {name} is missing; give a folder with pytorch_model.bin or all files of {INDEX}"
            )
    return [folder / name for name in sorted(map(str, names))]


def _in_own_process(found: dict[Path, str], work: Path, source: str) -> dict[str, list[str]]:
    """Names of the tensors by file written into `work`."""
    total = len(found)
    targets = ["model.safetensors"] if total == 1 else [
        f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)
    ]  # fmt: skip
    job = work / ".job.json"
    files = [
        {"source": str(path.absolute()), "sha256": digest, "target": str((work / target).absolute())}
        for (path, digest), target in zip(found.items(), targets, strict=True)
    ]
    write_json(job, {"files": files})
    known = secrecy.known()
    environment = {
        name: value for name, value in os.environ.items()
        if not any(secret in value for secret in known) and name not in secrecy.FILES
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "unidetox_ray.unpickle", str(job)],
        env={**environment, "HF_HUB_OFFLINE": "1"}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    job.unlink()
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise ModelError(f"convert {source}: not converted ({said[:400]}); nothing was written")
    tensors: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])["tensors"]
    return tensors
