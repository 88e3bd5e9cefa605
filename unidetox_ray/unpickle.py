"""`python -m unidetox_ray.unpickle JOB.json`: pickled weights to safetensors, in a process of its own.

The only file of this package that opens a pickle. `unidetox convert` starts it with an environment that holds no secret.
torch reads the file with `weights_only=True`, which builds tensors and plain containers and refuses everything else, and only
when the bytes have the hash that the user gave.

JOB.json: {"files": [{"source": path, "sha256": hex, "target": path}]}. Prints {"tensors": {target name: [names]}} as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any


def convert(source: Path, sha256: str, target: Path) -> list[str]:
    """Write the tensors of `source` to `target` and return their names. ValueError: other bytes, or not just tensors."""
    import torch
    from safetensors.torch import save_file

    with source.open("rb") as stream:  # one handle: what was hashed is what is read
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{source.name} hashes to {found}, not to {sha256}")
        stream.seek(0)
        state: Any = torch.load(stream, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{source.name} holds no dictionary of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{source.name}: {str(name)[:80]!r} is no tensor but {type(value).__name__}")
    # safetensors refuses tensors that share memory: tied weights are written once for each of their names.
    whole = {name: value.detach().contiguous().clone() for name, value in state.items()}
    save_file(whole, target, metadata={"format": "pt"})
    return list(whole)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        names = {
            Path(each["target"]).name: convert(Path(each["source"]), each["sha256"], Path(each["target"]))
            for each in job["files"]
        }
    except Exception as error:  # a hostile file can raise anything; the parent reads one line
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"{type(error).__name__}: {lines[0][:300]}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({"tensors": names}))


if __name__ == "__main__":
    main()
