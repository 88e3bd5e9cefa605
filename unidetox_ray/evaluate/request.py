"""What is asked of an evaluation, and what each of its arguments holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unidetox_ray.evaluate.correction import METHODS
from unidetox_ray.evaluate.generated import Server
from unidetox_ray.evaluate.sources import Source
from unidetox_ray.evaluate.store import Parts
from unidetox_ray.metrics.stats import MIN_SAMPLES


@dataclass(frozen=True)
class Request:
    """What to evaluate and how; field by field the options of the command."""

    sources: tuple[str, ...]
    scorers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    label_maps: tuple[str, ...] = ()
    activation: str = "auto"
    threshold: float = 0.5
    columns: tuple[str, ...] = ()
    prompts: str | None = None
    prompts_path: str | None = None
    prompts_options: tuple[str, ...] = ()
    split: str = "test"
    limit: int | None = None
    overrides: tuple[str, ...] = ()
    reference: str | None = None
    samples: int = MIN_SAMPLES
    seed: int = 0
    endpoint: Server | None = None
    perspective: Path | None = None
    labelled: Path | None = None
    correction: str = METHODS[0]
    out: Path | None = None
    track: str | None = "none"


@dataclass(frozen=True)
class Argument:
    """A source of the command with what became of it: its generations as parts, or why there are none."""

    source: Source
    parts: Parts | None
    sha256: str | None = None
    error: str | None = None
