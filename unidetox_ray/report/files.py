"""Writing a report so that a reader never sees half of one."""

from __future__ import annotations

from pathlib import Path

from unidetox_ray.artifacts import write_plain
from unidetox_ray.secrecy import redacted


def write(path: Path, content: str) -> Path:
    """UTF-8 with LF line ends, owner only, secrets blanked out, by atomic rename; returns `path`."""
    write_plain(path, redacted(content))
    return path
