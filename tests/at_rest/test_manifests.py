"""Every manifest under cluster/ that starts Ray starts it with a token, and none opens its dashboard to the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix not in {".md", ".png"})
STARTS = re.compile(
    r"\bray (start|symmetric-run)\b|kind:\s*Ray(Job|Cluster|Service|CronJob)|head_start_ray_commands|\bray up\b"
)
TOKEN = re.compile(
    r"RAY_AUTH_MODE[\"']?\s*(?:[=:]|,?\s*value:)\s*[\"']?token|authOptions:\s*\{?\s*mode:\s*[\"']?token|name:\s*RAY_AUTH_MODE\s*\n?\s*,?\s*value:\s*[\"']?token"
)
OPEN = re.compile(r"dashboard[-_]host[\"']?\s*[=:]?\s*[\"']?(0\.0\.0\.0|::)")


def problems(source: str) -> list[str]:
    found = []
    if STARTS.search(source) and not TOKEN.search(source):
        found.append("starts Ray without RAY_AUTH_MODE=token")
    if re.search(r"RAY_AUTH_MODE[\"']?\s*[=:]\s*[\"']?disabled", source):
        found.append("switches authentication off")
    # In a pod the dashboard must answer the probes of its own node; the NetworkPolicy beside it closes the rest.
    if OPEN.search(source) and "kind: Ray" not in source:
        found.append("opens the dashboard to the network")
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CLUSTER)) for path in FILES])
def test_a_manifest_has_a_token(path):
    assert problems(path.read_text(encoding="utf-8")) == []


def test_the_readme_submits_with_a_token():
    assert TOKEN.search((CLUSTER / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", [
    "ray start --head", "kind: RayJob\nspec: {}", "head_start_ray_commands:\n  - ray start --head", "export RAY_AUTH_MODE=disabled\n",
    "export RAY_AUTH_MODE=token\nray start --head --dashboard-host=0.0.0.0",
])  # fmt: skip
def test_the_check_finds(source):
    assert problems(source)


@pytest.mark.parametrize("source", [
    "export RAY_AUTH_MODE=token\nray start --head --dashboard-host=127.0.0.1",
    "kind: RayCluster\nspec:\n  authOptions:\n    mode: token\n", "kind: RayJob\nenv:\n  - name: RAY_AUTH_MODE\n    value: token\n",
])  # fmt: skip
def test_the_check_lets_pass(source):
    assert problems(source) == []
