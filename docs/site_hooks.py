"""Hooks of `mkdocs build`: the pages made from code, the repository's own documents, and links between the two.

- reference/cli.md    every verb with its arguments and options, from the command itself (what `--help` says)
- reference/settings.md   every key of an experiment file, from the schema that `unidetox schema` prints
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
_CODE = re.compile(r"`[^`]*`")
_FENCE = re.compile(r"^(```|~~~)")


def on_files(files: Files, config: Any) -> Files:
    """The pages that lie in no file of docs/."""
    made = {
        "reference/cli.md": cli_page(),
        "reference/settings.md": settings_page(),
        "reference/api.md": api_page(),
    }
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
        if not fenced:
            line = _LINK.sub(lambda found: _rewritten(found, place), line)
            if line.startswith("|"):
                # GitHub wants a pipe in a table's code escaped; here the backslash would be shown.
                line = _CODE.sub(lambda found: found.group(0).replace("\\|", "|"), line)
        lines.append(line)
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
    elif there == "unidetox_ray/settings.py":
        new = "reference/settings.md"
    elif there.startswith("docs/") and Path(there).suffix:
        new = there.removeprefix("docs/")
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


def settings_page() -> str:
    """A table of keys for the experiment itself and for each of its sections, sections of sections behind them."""
    from unidetox_ray.config import Experiment

    schema = Experiment.model_json_schema()
    parts = [
        "# Settings",
        "",
        "Every key of an experiment file, made from the code when this site is built. On the command line: "
        "`key=value` behind the file, with a dot into a section (`corpus.alpha=0.05`). Defaults are those of "
        "`fidelity: paper`; `unidetox schema` prints the same for editors.",
        "",
        "## The file",
        "",
        *_keys(schema),
    ]
    waiting, seen = _sections(schema, ""), set[str]()
    while waiting:
        key, name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        section = schema["$defs"][name]
        text = (section.get("description") or "").split("\n\n")[0]
        parts += [f"## {key}", "", _cell(text).replace("<", "&lt;"), "", *_keys(section)]
        waiting = _sections(section, key) + waiting
    return "\n".join(parts)


def _sections(schema: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    """The keys of `schema` whose value is a section, with the section's name in `$defs`."""
    found = []
    for key, value in schema["properties"].items():
        asked = str({name: part for name, part in value.items() if name != "default"})
        found += [(f"{prefix}.{key}".lstrip("."), name) for name in re.findall(r"#/\$defs/(\w+)", asked)]
    return found


def _keys(schema: dict[str, Any]) -> list[str]:
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key, value in schema["properties"].items():
        default = "required" if key in schema.get("required", ()) else _default(value)
        meaning = _cell(value.get("description", "")).replace("<", "&lt;")
        rows.append(f"| `{key}` | {_takes(value)} | {default} | {meaning} |")
    return [*rows, ""]


def _default(value: dict[str, Any]) -> str:
    import json

    default = value.get("default", "")
    if default == "" or isinstance(default, dict):
        return ""
    return f"`{_cell(json.dumps(default)).replace('Infinity', 'inf')}`"


def _takes(value: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_takes(each) for each in value["anyOf"]))
    if "$ref" in value:
        return "a section"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if value.get("type") == "array":
        return f"a list of: {_takes(value.get('items', {}))}"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "null": "null", "object": "keys and values"}  # fmt: skip
    said = names.get(value.get("type", ""), "anything")
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [
        f"{sign} {value[name]:g}"
        for name, sign in signs.items()
        if name in value and value[name] != 2**31 - 1
    ]
    return " ".join([said, ", ".join(bounds)]).strip().replace("<", "&lt;")


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
