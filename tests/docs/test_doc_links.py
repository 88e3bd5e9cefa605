"""Links of the documentation: files exist, anchors are headings, pages are in the site's nav, and it asks nobody else for anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from fenced import PAGES, ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
DOCUMENTS = (*PAGES, ROOT / "CHANGELOG.md", ROOT / "experiments" / "LOG.md")


def prose(page: Path) -> str:
    """The page without fenced blocks and inline code, whose brackets are no links."""
    text = re.sub(r"^(```|~~~).*?^\1\s*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Ids of the headings as GitHub makes them; a repeated heading gets a number."""
    text = re.sub(r"^(```|~~~).*?^\1\s*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(name if name not in found else f"{name}-{sum(each.startswith(name) for each in found)}")
    return found


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_anchors_lead_somewhere(page: Path):
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith(("https://", "http://127.0.0.1")), f"{page}: {target}"
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() and there.is_relative_to(ROOT), (
            f"{page.relative_to(ROOT)}: {target} leads nowhere"
        )
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{page.relative_to(ROOT)}: {target}: no such heading"


def nav_pages(entries: list) -> list[str]:
    found = []
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += nav_pages(target) if isinstance(target, list) else [target]
    return found


def test_every_page_is_in_the_nav_once_and_every_entry_is_a_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = nav_pages(config["nav"])
    assert len(listed) == len(set(listed))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages - set(listed) == set(), "add these to the nav of mkdocs.yml"
    made = {name for name in listed if name.startswith(("repo/", "reference/"))}
    assert set(listed) - pages - made == set()


def test_every_method_has_its_page_in_the_nav():
    from unidetox_ray import registry

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert {f"methods/{name}.md" for name in registry.METHODS} <= set(nav_pages(config["nav"]))


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_are_lists_on_the_site_too(page: Path):
    """The site's Markdown wants a blank line before a list and four spaces before what belongs to an item."""
    text = re.sub(r"^(```|~~~).*?^\1\s*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    item, before = False, ""
    for line in text.split("\n"):
        starts = re.match(r"([-*]|\d+\.) ", line)
        if starts and before.strip() and not item:
            raise AssertionError(f"{page.relative_to(ROOT)}: no blank line before {line[:60]!r}")
        if item and not before.strip() and re.match(r" {1,3}\S", line):
            raise AssertionError(f"{page.relative_to(ROOT)}: four spaces before {line.strip()[:60]!r}")
        if starts or (line.strip() and not line.startswith(" ")):
            # A line of an item may go on without spaces before it.
            item = bool(starts) or (item and bool(before.strip()))
        before = line


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_braces_outside_code(page: Path):
    """The site takes `{…}` at the end of a cell or a paragraph for attributes and shows nothing of it."""
    lines = [line for line in prose(page).split("\n") if not line.startswith("    ")]
    found = [line for line in lines if re.search(r"\{[^}]+\}\s*(\||$)", line)]
    assert found == []
