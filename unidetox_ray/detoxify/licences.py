"""The licence of a base model, by its own account."""

from __future__ import annotations

import re
from pathlib import Path

from unidetox_ray import registry, yaml_file
from unidetox_ray.errors import ConfigError

_FILES = re.compile(r"(?i)^(licen[cs]e|notice|use_policy|copying)([._-].*)?$")
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)


def licence_files(folder: Path) -> list[Path]:
    """Licence texts and notices that lie beside a model's weights."""
    return sorted(path for path in folder.iterdir() if path.is_file() and _FILES.match(path.name))


def licence_of(source: str, revision: str | None = None) -> str | None:
    """What the model's card names as its licence; None where there is no card, it says nothing or is out of reach."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        place = folder / "README.md"
        return _named(place.read_text(encoding="utf-8", errors="replace")) if place.is_file() else None
    for name in registry.names("families"):
        family = registry.lookup("families", name)
        if family.hub_id == source:
            return str(family.licence)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    from unidetox_ray.secrecy import hub_token

    try:
        card = hf_hub_download(source, "README.md", revision=revision, token=hub_token())
    except (HfHubHTTPError, OSError, ValueError):  # no card, no network, no such file in the cache
        return None
    return _named(Path(card).read_text(encoding="utf-8", errors="replace"))


def _named(card: str) -> str | None:
    found = _FRONT.match(card)
    if found is None:
        return None
    try:
        values = yaml_file.parse(found.group(1), "model card")
    except ConfigError:  # front matter that is no plain YAML names no licence that could be trusted
        return None
    if not isinstance(values, dict):
        return None
    named, other = values.get("license"), values.get("license_name")
    if isinstance(named, list):
        named = ", ".join(map(str, named))
    if named == "other" and isinstance(other, str):
        named = other
    return str(named)[:200] if isinstance(named, str) and named else None
