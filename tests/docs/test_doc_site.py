"""The site as `make docs` builds it: strictly, with the generated pages, and asking nobody for anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fenced import ROOT

from unidetox_ray.cli.app import app

pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -e '.[docs]'")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_verb_and_its_options_are_on_the_page_of_commands(site: Path):
    from typer.main import get_command

    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for name, verb in get_command(app).commands.items():
        assert f'id="unidetox-{name}"' in page
        for parameter in verb.params:
            assert all(option in page for option in parameter.opts if option.startswith("--")), name
    assert "&amp;lt;" not in page
    assert "FILE|published|fresh" in page


def test_no_page_shows_the_backslash_before_a_pipe(site: Path):
    for page in site.rglob("*.html"):
        shown = re.findall(r"<code>[^<]*\\\|[^<]*</code>", page.read_text(encoding="utf-8"))
        assert shown == [], f"{page.name}: {shown}"


def test_every_setting_is_on_the_page_of_settings_with_its_meaning(site: Path):
    from unidetox_ray.config import Experiment

    page = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    schema = Experiment.model_json_schema()
    for name, section in [("", schema), *schema["$defs"].items()]:
        for key, value in section["properties"].items():
            assert value.get("description"), f"{name}.{key}: no meaning stands under it"
            assert f"<code>{key}</code>" in page, f"{name}.{key}"
    for heading in ("evaluate.scorers", "finetune.lora", "models.scratch", "cluster"):
        assert f'id="{heading.replace(".", "")}"' in page, heading


def test_search_finds_words_on_pages_that_lie_on_a_disk(site: Path):
    api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no system chromium; install Debian's package chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "evaluate" / "scorers.html").as_uri())
        page.locator(".md-search__input").click()
        page.keyboard.type("rogan")
        found = page.locator("a.md-search-result__link").first
        found.wait_for(timeout=60_000)
        assert "correction.html" in found.get_attribute("href")
        assert all(url.startswith("file:") for url in asked), asked
        browser.close()


def test_docstrings_are_on_the_page_of_python(site: Path):
    page = (site / "reference" / "api.html").read_text(encoding="utf-8")
    for name in ("config.load", "pipeline.run", "core.decode", "exporting.export_run", "metrics.toxicity"):
        assert f'id="unidetox_ray.{name}"' in page, name


def test_the_pages_load_nothing_from_elsewhere(site: Path):
    loads = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        elsewhere = [tag for tag in loads.findall(text) if 'rel="canonical"' not in tag]
        assert elsewhere == [], f"{page.name}: {elsewhere}"
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\(['\"]?(?:https?:)?//", styles) and "@import" not in styles


def test_documents_outside_the_folder_are_pages_and_links_to_them_hold(site: Path):
    cluster = site / "repo" / "cluster.html"
    assert (site / "repo" / "CONTRIBUTING.html").exists() and cluster.exists()
    assert 'href="repo/cluster.html"' in (site / "quickstart.html").read_text(encoding="utf-8")
    assert not (site / "site_hooks.py").exists()
