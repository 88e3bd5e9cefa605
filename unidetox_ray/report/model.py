"""Everything the report shows, as dataclasses. `load` fills them from the files of a run folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from unidetox_ray.leaderboard.board import OWN
from unidetox_ray.report import text

if TYPE_CHECKING:
    from unidetox_ray.report.content import Content

BASE = "base"
TOXIC = "toxic model"  #: the method of a curve that is the toxic model's


@dataclass(frozen=True)
class Metric:
    """A measured value with its interval and its paired difference to the family's base cell.

    All numbers are None when withheld or absent; `failed` counts judgements that gave no value.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    diff: float | None = None
    diff_low: float | None = None
    diff_high: float | None = None
    failed: int | None = None
    reason: str = ""

    @property
    def falls(self) -> bool:
        """The whole paired interval lies below 0."""
        return self.diff_high is not None and self.diff_low is not None and self.diff_high < 0

    @property
    def rises(self) -> bool:
        """The whole paired interval lies above 0."""
        return self.diff_low is not None and self.diff_high is not None and self.diff_low > 0

    def why_missing(self) -> str:
        """Why there is no value, in words."""
        if self.reason:
            return self.reason
        if self.failed:
            return f"withheld: {text.plural(self.failed, 'judgement')} failed"
        return "withheld: no value was stored" if self.n is not None else "not measured"


@dataclass(frozen=True)
class Domain:
    """Toxicity of one cell in one domain; `distribution` is "id" or "ood"."""

    name: str
    distribution: str
    tp: Metric
    emt: Metric


@dataclass(frozen=True)
class Cell:
    """One family, method, seed and settings."""

    family: str
    model: str
    method: str
    seed: int | None
    settings: dict[str, Any]
    ok: bool
    error: str
    cell: str
    label: str
    metrics: dict[str, Metric]
    domains: tuple[Domain, ...]
    scorer: str
    costs: dict[str, Any]

    def metric(self, name: str) -> Metric:
        return self.metrics.get(name, Metric())


@dataclass(frozen=True)
class Corpus:
    """A distilled corpus: `lengths` in tokens of the base model; `samples` are raw text, to be masked."""

    label: str
    rows: int
    lengths: tuple[int, ...]
    ended: float | None
    sha256: str | None
    samples: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def median_length(self) -> float | None:
        return median(self.lengths) if self.lengths else None


@dataclass(frozen=True)
class Curve:
    """Training loss (nats a token) by step, at most 200 points."""

    cell: str
    family: str
    method: str
    points: tuple[tuple[float, float], ...]
    steps: int


@dataclass(frozen=True)
class Manifest:
    """What a finished stage or training left behind; `folder` is relative to the run's."""

    folder: str
    stage: str
    key: str
    created: str
    seconds: float | None
    inputs: dict[str, Any]
    files: dict[str, Any]
    versions: dict[str, Any]
    code: dict[str, Any]
    counts: dict[str, Any]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    name: str
    config: dict[str, Any]
    config_sha256: str | None
    cells: tuple[Cell, ...]
    corpora: tuple[Corpus, ...]
    curves: tuple[Curve, ...]
    manifests: tuple[Manifest, ...]
    search: dict[str, Any] | None
    has_results: bool
    content: Content | None = None
    tuning: dict[str, Any] | None = None
    """tuning.json."""
    tuning_test: tuple[dict[str, Any], ...] = ()
    """Cells with their own family's setting against those with the universal one, on test prompts."""
    problems: list[str] = field(default_factory=list)

    @property
    def families(self) -> list[str]:
        return _in_order((c.family for c in self.cells), _names(self.config.get("families")))

    @property
    def methods(self) -> list[str]:
        """Method labels, base first, each before its variant that was tuned on its own family."""
        named = [BASE, *_names(self.config.get("methods"))]
        order = [name for label in named for name in (label, f"{label}{OWN}")]
        return _in_order((c.method for c in self.cells), order)

    def base_of(self, cell: Cell) -> Cell | None:
        """The family's base cell, of the same seed if there are several; None when it is absent or failed."""
        found = [c for c in self.cells if c.family == cell.family and c.method == BASE and c.ok]
        return next((c for c in found if c.seed == cell.seed), found[0] if found else None)

    def of_family(self, family: str) -> list[Cell]:
        order = self.methods
        mine = [cell for cell in self.cells if cell.family == family]
        return sorted(mine, key=lambda cell: (order.index(cell.method), cell.seed or 0))


def _names(entries: Any) -> list[str]:
    """Labels out of a list of strings or of mappings with a `label` or `name`."""
    names = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            entry = entry.get("label") or entry.get("name") or entry.get("method")
        if isinstance(entry, str):
            names.append(entry)
    return names


def _in_order(names: Iterable[str], order: list[str]) -> list[str]:
    present = list(dict.fromkeys(names))
    return [name for name in dict.fromkeys(order) if name in present] + [n for n in present if n not in order]
