"""The files under cluster/: what is in them that tests look at."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = Path(__file__).with_name("schemas")
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")])
KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
RAY_UP = sorted(CLUSTER.glob("ray_up_*.yaml"))
#: Every YAML file.
MANIFESTS = sorted(CLUSTER.rglob("*.yaml"))

#: A call of our command within a line of shell, up to where the shell would end it; `docker run IMAGE` gives the words behind it.
_COMMAND = re.compile(
    r"(?:python -m unidetox_ray|unidetox-ray:[\w.]+|(?<![\w./-])(?:\"?[\w$/.{}~-]*/bin/)?unidetox\"?) +(?P<words>[a-z][^\n|&;#`]*)"
)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))


def script(path: Path) -> str:
    """A file's text without lines of comment (a Dockerfile's say how it is used); of a YAML file the texts in it as whoever loads it gets them."""
    if path.suffix == ".md" or path.name == "Dockerfile":
        return path.read_text(encoding="utf-8")
    if path.suffix != ".yaml":
        return re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return "\n".join(_texts(list(yaml.safe_load_all(path.read_text(encoding="utf-8")))))


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def commands(source: str) -> list[list[str]]:
    """Words of every call of our command in a text of shell, YAML or Markdown; continued lines are joined."""
    joined = re.sub(r"\\\n\s*", " ", source)
    return [_words(found["words"].strip()) for found in _COMMAND.finditer(joined)]


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # the end of a quoted command line is no word of it
        return shlex.split(command.rstrip("'\""))


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> pod template of everything that a RayCluster or RayJob starts."""
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in spec:
        found["submitter"] = spec["submitterPodTemplate"]
    return found
