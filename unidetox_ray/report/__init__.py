"""The report of a run: `report.html` and `report.md` from the files of its folder, without GPU or network.

load       run folder → dataclasses (model)       verdict             numbers → words
*_sections dataclasses → document                 html, markdown      document → text
charts     values → SVG panels                    search              search_report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unidetox_ray.report.baseline import Comparison

__all__ = ["ReportPaths", "build", "build_search"]


@dataclass(frozen=True)
class ReportPaths:
    """Where the report was written."""

    html: Path
    markdown: Path


def build(run_dir: Path, *, show_text: bool = False, comparison: Comparison | None = None) -> ReportPaths:
    """Write report.html and report.md into a run folder and return their paths; beside them leaderboard.json and .csv.

    Parts of the folder that are absent leave their section out; damaged ones are named in the report. Text of
    models and data is masked unless `show_text`. comparison: with a baseline, a section of its own. ArtifactError when the folder does not exist or its
    results.json is damaged.
    """
    from unidetox_ray.leaderboard import write_leaderboard
    from unidetox_ray.report import html, leaderboard_sections, load, markdown, whole
    from unidetox_ray.report.files import write

    run = load.load(Path(run_dir))
    if run.has_results:
        write_leaderboard(leaderboard_sections.board_of_run(run), Path(run_dir))
    document = whole.document(run, show_text, comparison)
    return ReportPaths(
        html=write(Path(run_dir) / "report.html", html.render(document)),
        markdown=write(Path(run_dir) / "report.md", markdown.render(document)),
    )


def build_search(run_dir: Path) -> Path:
    """Write search_report.html from the folder's search.json and return its path."""
    from unidetox_ray.report.search import build_search as write_search

    return write_search(run_dir)
