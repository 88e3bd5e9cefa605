"""What the container that this process runs in allows."""

from __future__ import annotations

import os
from pathlib import Path

#: Where Linux says how much memory a control group may use: version 2 and 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit() -> float:
    """Bytes that the control group of this process may use, infinite where it sets no limit."""
    for place in _LIMITS:
        try:
            return float(Path(place).read_text(encoding="ascii"))
        except (OSError, ValueError):  # absent, or the word `max`
            continue
    return float("inf")


def machine_memory() -> int:
    """Bytes of this machine, or fewer where the container that this process runs in allows fewer."""
    return int(min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit()))
