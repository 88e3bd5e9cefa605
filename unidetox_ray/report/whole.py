"""A run as one document: which sections, in which order."""

from __future__ import annotations

from unidetox_ray.report import (
    baseline_sections,
    content_sections,
    leaderboard_sections,
    result_sections,
    run_sections,
    tuning_sections,
)
from unidetox_ray.report.baseline import Comparison
from unidetox_ray.report.document import Document, Section, prose
from unidetox_ray.report.model import Run
from unidetox_ray.report.text import clean, plural


def document(run: Run, show_text: bool, comparison: Comparison | None = None) -> Document:
    """All sections that have something to show."""
    sections = [
        result_sections.headline(run),
        leaderboard_sections.leaderboard(run),
        result_sections.domains(run),
        run_sections.search(run),
        tuning_sections.tuning(run),
        run_sections.training(run),
        run_sections.corpus(run, show_text),
        content_sections.content(run, show_text),
        run_sections.cost(run),
        None if comparison is None else baseline_sections.section(comparison),
        run_sections.protocol(run),
        result_sections.further_metrics(run),
        result_sections.second_scorers(run),
        run_sections.provenance(run),
        run_sections.notes(),
    ]
    kept = [section for section in sections if section is not None]
    if run.problems:
        kept[0] = Section(
            kept[0].key,
            kept[0].title,
            (*(prose(f"Not shown: {problem}.", kind="warning") for problem in run.problems), *kept[0].blocks),
        )
    failed = sum(not cell.ok for cell in run.cells)
    parts = [f"fidelity {clean(run.config['fidelity'], 40)}"] if run.config.get("fidelity") else []
    if run.has_results:
        parts.append(
            f"{plural(len(run.families), 'family', 'families')}, {plural(len(run.methods), 'method')}"
        )
        parts.append(f"{plural(len(run.cells), 'cell')}, {failed} failed")
    finished = [manifest.created for manifest in run.manifests if manifest.created]
    parts += [f"last stage finished {max(finished)[:19].replace('T', ' ')}"] if finished else []
    parts.append("text shown as it is" if show_text else "text redacted")
    return Document(f"Detoxification report: {run.name}", " · ".join(parts), tuple(kept))
