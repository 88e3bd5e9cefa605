"""`search_report.html`: the search over steps and learning rate on its own, from search.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unidetox_ray.errors import ArtifactError
from unidetox_ray.report import html, search_sections
from unidetox_ray.report.document import Block, Document, Section, prose
from unidetox_ray.report.files import write
from unidetox_ray.report.notes import NOTES
from unidetox_ray.report.text import clean, plural

CAUTION = (
    "The setting was chosen on validation prompts of one family and is reused unchanged for the others. The value "
    "of the chosen trial is the lowest of many, so it looks better than it is; the report's test prompts measure "
    "it afresh."
)


def build_search(run_dir: Path) -> Path:
    """Write `search_report.html` beside search.json; ArtifactError when that is absent or damaged."""
    source = Path(run_dir) / "search.json"
    if not source.is_file():
        raise ArtifactError(f"search report: {source} does not exist; run `unidetox search EXPERIMENT` first")
    try:
        search = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"search report: {source} is damaged ({error}); run the search again") from error
    if not isinstance(search, dict):
        raise ArtifactError(f"search report: {source} holds no mapping; run the search again")
    return write(
        Path(run_dir) / "search_report.html", html.render(_document(search, Path(run_dir).resolve().name))
    )


def best_yaml(search: dict[str, Any]) -> str:
    """best.yaml: the chosen setting as a `finetune:` section, its reason and any caution in comments before it."""
    setting = search_sections.setting(search)
    if setting is None:
        raise ArtifactError("search.json: holds no chosen setting; run the search again")
    words = [clean(search.get("reason") or "", 400), search_sections.other_schedule(search)]
    return "".join(f"# {line}\n" for line in words if line) + setting.text


def _document(search: dict[str, Any], name: str) -> Document:
    setting = search_sections.setting(search)
    chosen: list[Block | None] = [*search_sections.choice(search)]
    chosen += [prose("Paste into an experiment:", kind="note"), setting] if setting else []
    measured: list[Block | None] = [search_sections.heat(search)]
    metric = search_sections.metric_of(search)
    trials = search_sections.trials_table(search)
    sections: list[tuple[str, str, list[Block | None]]] = [
        ("choice", "Choice", chosen),
        ("map", "Steps and learning rate", measured),
        ("trials", "Trials", [trials or prose("search.json holds no trials.", kind="note")]),
    ]
    kept = [Section(key, title, tuple(b for b in blocks if b is not None)) for key, title, blocks in sections]
    amount = plural(len(search_sections.trials_of(search)), "trial")
    family = clean(search.get("base_family") or "the base family", 60)
    words = f"{CAUTION} {NOTES[0][1]}"
    kept.append(Section("notes", "Notes", (prose(words),)))
    subtitle = f"{amount} on {family}, lowest {metric}"
    return Document(
        f"Search: {clean(name, 80)}", subtitle, tuple(section for section in kept if section.blocks)
    )
