"""The reports in a real browser: no error, no request, nothing wider than the screen, light and dark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unidetox_ray.report import build, build_search

playwright_api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no system chromium; install Debian's package chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[[Path], Path]) -> dict[str, Path]:
    folder = make_run(tmp_path_factory.mktemp("browser") / "tiny")
    shown = make_run(tmp_path_factory.mktemp("shown") / "tiny")
    return {
        "report": build(folder).html,
        "search": build_search(folder),
        "shown": build(shown, show_text=True).html,
    }


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def open_page(browser, path: Path, width: int, scheme: str = "light", script: bool = True):
    """The loaded page, with the list its errors and the list its requests go to."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=script
    )
    page, errors, requests = context.new_page(), [], []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    return page, errors, requests


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("name", ["report", "shown", "search"])
def test_opens_from_disk_without_error_request_or_overflow(
    browser, pages, name: str, width: int, scheme: str
) -> None:
    page, errors, requests = open_page(browser, pages[name], width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("""Array.from(document.querySelectorAll('main *, header *')).filter(e =>
        !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > innerWidth + 0.5).length""")
    assert wide == 0
    assert errors == [] and requests == [pages[name].as_uri()]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser, pages, scheme: str) -> None:
    page, _, _ = open_page(browser, pages["report"], 1280, scheme)
    ratio = """selector => { const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => { x /= 255;
        return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; }); 
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
        const e = document.querySelector(selector), s = getComputedStyle(e);
        const paint = e.closest('svg') ? s.fill : s.color;
        const l = [lum(paint), lum(getComputedStyle(document.body).backgroundColor)].sort((a, b) => b - a);
        return (l[0] + 0.05) / (l[1] + 0.05); }"""
    for selector in (
        "p.lead",
        ".sub",
        ".ci",
        ".better .diff b",
        ".worse .diff b",
        "svg .tick",
        ".fam",
        "nav a",
    ):
        assert page.evaluate(ratio, selector) >= 4.5, selector
    for slot in range(3):
        assert page.evaluate(ratio, f"svg .mark.s{slot}") >= 3, slot


def test_chart_text_is_readable_on_a_phone(browser, pages) -> None:
    page, _, _ = open_page(browser, pages["report"], 360)
    smallest = page.evaluate("""Math.min(...Array.from(document.querySelectorAll('svg.chart')).map(s =>
        11 * s.getBoundingClientRect().width / s.viewBox.baseVal.width))""")
    assert smallest >= 10


def test_every_chart_has_a_name_and_a_description(browser, pages) -> None:
    page, _, _ = open_page(browser, pages["report"], 1280)
    assert page.evaluate("document.querySelectorAll('svg.chart').length") >= 16
    unnamed = page.evaluate("""Array.from(document.querySelectorAll('svg.chart')).filter(s =>
        !s.getAttribute('aria-labelledby').split(' ').every(
            id => (document.getElementById(id)?.textContent || '').length > 3)).length""")
    assert unnamed == 0
    assert page.evaluate(
        "new Set(Array.from(document.querySelectorAll('[id]')).map(e => e.id)).size"
    ) == page.evaluate("document.querySelectorAll('[id]').length")


def test_headline_sorts_by_a_click_and_keeps_failed_rows_last(browser, pages) -> None:
    page, errors, _ = open_page(browser, pages["report"], 1280)
    values = """Array.from(document.querySelectorAll('#results tbody tr')).map(r =>
        r.hasAttribute('data-failed') ? null : Number(r.cells[1].dataset.v))"""
    page.click("#results thead th:nth-child(2) button")
    rising = page.evaluate(values)
    page.click("#results thead th:nth-child(2) button")
    falling = page.evaluate(values)
    assert rising[-1] is None and falling[-1] is None
    assert rising[:-1] == sorted(rising[:-1]) and falling[:-1] == rising[:-1][::-1]
    assert page.get_attribute("#results thead th:nth-child(2)", "aria-sort") == "descending"
    assert errors == []


def test_the_ranking_sorts_by_a_click_and_keeps_the_unranked_last(browser, pages) -> None:
    page, errors, _ = open_page(browser, pages["report"], 1280)
    names = """Array.from(document.querySelectorAll('#leaderboard table')[0].tBodies[0].rows).map(r =>
        r.cells[0].querySelector('.name').textContent)"""
    assert page.evaluate(names) == ["unidetox", "base", "samples"]
    page.click("#leaderboard table >> nth=0 >> thead th:nth-child(2) button")
    page.click("#leaderboard table >> nth=0 >> thead th:nth-child(2) button")
    assert page.evaluate(names) == ["base", "unidetox", "samples"]
    assert errors == []


def test_works_without_javascript(browser, pages) -> None:
    page, errors, _ = open_page(browser, pages["report"], 360, script=False)
    assert page.locator("#results tbody tr").count() == 12
    assert page.locator("th button").count() == 0 and errors == []


def test_the_search_report_shows_the_choice_its_reason_the_curves_and_every_trial(browser, pages) -> None:
    page, errors, _ = open_page(browser, pages["search"], 1280)
    choice = page.inner_text("#choice")
    assert "chosen" in choice and "reason" in choice and "finetune:" in choice
    stored = json.loads((pages["search"].parent / "search.json").read_text())
    assert stored["reason"][:60] in choice
    assert page.locator("#trials tbody tr").count() == len(stored["trials"])
    assert page.locator("#map svg.chart").count() == 2, "the map, and a curve for each rate"
    assert "★" in page.inner_text("#trials") and errors == []
