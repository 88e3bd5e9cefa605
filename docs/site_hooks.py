"""Hooks of `mkdocs build`: the pages made from code, the repository's own documents, and links between the two.

- reference/cli.md    every verb with its arguments and options, from the command itself (what `--help` says)
- reference/api.md    the docstrings of the modules in MODULES, by mkdocstrings
- repo/…              CONTRIBUTING, CHANGELOG and other documents that lie outside docs/

Links in the pages are written for a reader of the repository; those that leave docs/ are rewritten here.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
#: Documents outside docs/ that are pages of the site, and where.
REPOSITORY = {
    "CONTRIBUTING.md": "repo/CONTRIBUTING.md",
    "CHANGELOG.md": "repo/CHANGELOG.md",
    "cluster/README.md": "repo/cluster.md",
    "experiments/LOG.md": "repo/LOG.md",
}
#: Pages of the nav that may be missing: verbs that are merged on their own.
AWAITED = ("detoxify.md", "evaluate.md", "evaluate_parts.md", "plan.md", "doctor.md", "clusters.md")
#: What a user of the package imports.
MODULES = (
    "config", "settings", "registry", "errors", "schemas", "artifacts", "pipeline", "results", "records", "single",
    "exporting", "cards", "leaderboard.board", "leaderboard.front",
    "core.logits", "core.decode", "core.loop", "core.steering", "core.weights", "core.streams",
    "families.base", "families.loading", "methods.base", "data.base", "metrics.base", "metrics.toxicity",
    "metrics.perplexity", "metrics.distinct", "metrics.mmlu", "metrics.stats", "metrics.content",
    "stages.context", "stages.orders", "tracking", "tracking.tracker", "tracking.runs", "tracking.views", "report",
)  # fmt: skip
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_TYPE = re.compile(r" <[^>]*>$")
_FENCE = re.compile(r"^(```|~~~)")


def on_config(config: Any) -> Any:
    """The nav without the pages that are not there yet."""
    config["nav"] = _present(config["nav"])
    return config


def _present(entries: list[Any]) -> list[Any]:
    kept = []
    for entry in entries:
        name, target = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(target, list):
            kept.append({name: _present(target)})
        elif target not in AWAITED or (ROOT / "docs" / target).exists():
            kept.append(entry)
    return kept


def on_files(files: Files, config: Any) -> Files:
    """The pages that lie in no file of docs/."""
    made = {"reference/cli.md": cli_page(), "reference/api.md": api_page()}
    made |= {page: (ROOT / name).read_text(encoding="utf-8") for name, page in REPOSITORY.items()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site needs them; what stands in code blocks stays."""
    place = page.file.src_uri
    fenced, lines = False, []
    for line in markdown.split("\n"):
        if _FENCE.match(line.lstrip()):
            fenced = not fenced
        lines.append(line if fenced else _LINK.sub(lambda found: _rewritten(found, place), line))
    return "\n".join(lines)


def _rewritten(found: re.Match[str], place: str) -> str:
    text, target = found.groups()
    path, hash_, anchor = target.partition("#")
    if "://" in target or not path or target.startswith("mailto:"):
        return found.group(0)
    here = next((name for name, page in REPOSITORY.items() if page == place), f"docs/{place}")
    there = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
    if there == "README.md":
        new, anchor = ("reference/cli.md", "commands") if anchor == "verbs" else ("index.md", anchor)
    elif there.startswith("docs/") and Path(there).suffix:
        new = there.removeprefix("docs/")
        if new in AWAITED and not (ROOT / there).exists():
            return text
    elif there in REPOSITORY:
        new = REPOSITORY[there]
    else:  # a folder or a file that is no page
        return text
    return f"[{text}]({posixpath.relpath(new, posixpath.dirname(place) or '.')}{hash_}{anchor})"


def cli_page() -> str:
    """Every verb in the order of `--help`."""
    import typer
    from typer.main import get_command

    from unidetox_ray.cli import app

    group = get_command(app)
    parts = ["# Commands", "", "Made from the command itself when this site is built. Exit codes: 0 done, 1 a stage failed, "
             "2 a mistake in what was given, 3 some cells failed and the rest are reported, 130 interrupted.", ""]  # fmt: skip
    parts += [
        "`unidetox --install-completion` lets your shell complete verbs, files, stages, keys and names.",
        "",
    ]
    context = typer.Context(group, info_name="unidetox")
    parts += _command("unidetox", group, context)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if not command.hidden:
            parts += _command(
                f"unidetox {name}", command, typer.Context(command, info_name=name, parent=context)
            )
    return "\n".join(parts)


def _command(title: str, command: Any, context: Any) -> list[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f"## {title}",
        "",
        (command.help or "").strip().replace("<", "&lt;"),
        "",
        "```text",
        f"{title} {usage}",
        "```",
        "",
    ]
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [
        f"| `{_cell(_TYPE.sub('', name))}` | {_cell(text).replace('<', '&lt;')} |"
        for name, text in filter(None, records)
    ]
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api_page() -> str:
    """One heading per module of MODULES, filled by mkdocstrings."""
    parts = [
        "# Python",
        "",
        "From the docstrings. What has no leading underscore here may be imported; what is not listed may change.",
        "",
    ]
    for module in MODULES:
        parts += [f"::: unidetox_ray.{module}", ""]
    return "\n".join(parts)
