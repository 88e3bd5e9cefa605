"""What an experiment needs before it is run: memory, disk, time, a schedule, and what would make it fit.

devices    rates.json + `--gpus` → Fleet          shapes, texts      models and data → numbers, no weights
amounts    experiment → how much of everything    memory, durations  numbers → bytes, seconds
parts, making, measuring, work    amounts → stages of items    engine    stages → schedule, event by event
scaling    the same schedule on 1 … 1,000 GPUs    remedies           what does not fit → the setting that makes it
planning, result    all of it in one call, as numbers    console, page    a plan → text, HTML
measure, start_up    this machine's own entry of the rates
"""

from __future__ import annotations

__all__ = ["Plan", "plan"]

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unidetox_ray.plan.planning import Plan, plan


def __getattr__(name: str) -> Any:
    """Loaded on first use: `--help` must not wait for torch."""
    if name in __all__:
        from unidetox_ray.plan import planning

        return getattr(planning, name)
    raise AttributeError(name)
