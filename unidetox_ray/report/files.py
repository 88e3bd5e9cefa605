"""Writing a report so that a reader never sees half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: str) -> Path:
    """Write UTF-8 text with LF line ends beside `path`, then rename it over `path`; returns `path`."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(content, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
