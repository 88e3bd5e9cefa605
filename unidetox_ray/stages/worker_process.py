"""What every process of a private cluster does first. Light on purpose: it is imported before anything else is."""

from __future__ import annotations

import atexit
import gc

#: New objects before a collection looks at them; Python's default of 700 makes collections a fifth of the time that imports take.
_YOUNG = 50_000


def begin() -> None:
    """Ray's `worker_process_setup_hook`: fewer collections while modules load, and none at the end of the process.

    An interpreter that ends looks at every object once more, which with torch, transformers and Ray loaded costs a
    process a second of CPU while the next stage's processes start.
    """
    gc.set_threshold(_YOUNG, 20, 50)
    atexit.register(gc.freeze)
