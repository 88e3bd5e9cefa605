"""MLflow's own pages in a real browser, over a store that the tracking code wrote: what a new user sees without set-up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_store import STUDY, write_store

from unidetox_ray.tracking import read_runs, ui_command, ui_environment, ui_url
from unidetox_ray.tracking.views import METHODS

playwright_api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no system chromium; install Debian's package chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
#: Milliseconds for one thing to appear: the page is 5 MB of script, and the machine may be busy.
PATIENCE = 120_000


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def port(uri: str) -> Iterator[int]:
    """A real server over the store, as `unidetox ui` starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    environment = {**os.environ, **ui_environment()}
    server = subprocess.Popen(
        ui_command(uri, number), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{number}/health", timeout=5):
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, "the server did not start"
                time.sleep(0.3)
        yield number
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def page(port: int) -> Iterator:
    """A page that may speak with the server alone."""
    with playwright_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1500, "height": 1000})
        context.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
        )
        context.route(
            lambda url: not url.startswith(f"http://127.0.0.1:{port}/"), lambda route: route.abort()
        )
        shown = context.new_page()
        shown.set_default_timeout(PATIENCE)
        yield shown
        browser.close()


@pytest.fixture(scope="module")
def runs(uri: str) -> dict[str, dict]:
    return {run["name"]: run for run in read_runs(uri, STUDY)}


def opened(page, address: str):
    page.goto("about:blank")
    page.goto(address)
    return page


def see(page, text: str) -> None:
    page.get_by_text(text, exact=False).first.wait_for(state="visible")


def test_the_address_opens_on_a_chart_of_families_and_methods(page, port: int, uri: str) -> None:
    opened(page, ui_url(uri, None, port))
    see(page, "Toxicity and what it costs")
    for cell in ("gpt2-unidetox-s1", "llama-base-s1"):
        page.get_by_role("link", name=cell).first.wait_for(state="visible")
    # Best first, and the charts are ours before those that the page makes of every metric.
    names = page.locator("a[href*='/runs/']").all_inner_texts()
    cells = [name for name in names if name.endswith("-s1")]
    assert len(cells) == 6 and all("unidetox" in name for name in cells[:2]), cells
    for metric in ("tp_id", "tp_ood", "emt_id"):
        see(page, metric)
    page.locator(".main-svg").first.wait_for(state="visible")
    assert page.get_by_text("ci_high/tp_id", exact=True).count() == 0
    assert "Families and methods" in page.inner_text("body")


def test_of_a_server_the_verb_shows_the_same_address(port: int, uri: str) -> None:
    command = [sys.executable, "-m", "unidetox_ray", "ui", "--uri", f"http://127.0.0.1:{port}"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, f"MLflow: {ui_url(uri, None, port)}\n")


def test_methods_are_grouped_over_families_in_their_view(page, port: int, uri: str) -> None:
    opened(page, ui_url(uri, "small", port, METHODS))
    for method in ("unidetox", "samples", "base"):
        see(page, f"Group: {method}")


def test_the_table_is_a_tree_of_submissions_and_their_parts(page, port: int, uri: str) -> None:
    address = ui_url(uri, STUDY, port)
    opened(page, address.partition("?")[0] + "?workflowType=machine_learning")
    parent = page.get_by_role("link", name="small", exact=True).first
    parent.wait_for(state="visible")
    assert page.get_by_role("link", name="gpt2-unidetox-s1").count() == 0
    page.locator(
        "[data-icon='plus-square'], [data-testid='expander-button'], .ag-row button svg"
    ).first.click()
    for part in ("gpt2-unidetox-s1", "corpus unidetox", "search"):
        page.get_by_role("link", name=part, exact=True).first.wait_for(state="visible")
    see(page, "Detoxification experiment")


def test_a_submissions_page_ranks_the_methods_and_leads_to_its_cells(
    page, port: int, uri: str, runs: dict
) -> None:
    start = ui_url(uri, STUDY, port).partition("/runs?")[0]
    opened(page, f"{start}/runs/{runs['small']['run_id']}?workflowType=machine_learning")
    see(page, "Methods, means over families")
    ranks = page.locator("table").first.inner_text()
    assert ranks.index("unidetox") < ranks.index("samples") < ranks.index("base") and "0.125" in ranks
    see(page, "Child runs")
    see(page, "corpus-unidetox")
    page.get_by_role("link", name="llama-unidetox-s1").first.wait_for(state="visible")


def test_a_cells_page_shows_its_corpus_its_model_and_its_numbers(
    page, port: int, uri: str, runs: dict
) -> None:
    start = ui_url(uri, STUDY, port).partition("/runs?")[0]
    cell = runs["gpt2-unidetox-s1"]
    opened(page, f"{start}/runs/{cell['run_id']}?workflowType=machine_learning")
    see(page, "difference to base")
    see(page, "corpus-unidetox")
    page.get_by_role("link", name="small", exact=True).first.wait_for(state="visible")
    for metric in ("loss", "tp_id"):
        page.get_by_role("link", name=metric, exact=True).first.wait_for(state="visible")
    text = page.inner_text("body")
    digests = {each["name"]: each["digest"] for each in cell["inputs"]}
    assert digests["corpus-unidetox"] in text and "-0.825" in text
    # The same digest leads from the corpus to the cells that were trained on it.
    assert runs["corpus unidetox"]["inputs"][0]["digest"] == digests["corpus-unidetox"]
    model = cell["tags"]["unidetox.model_id"]
    opened(page, f"{start}/models/{model}?workflowType=machine_learning")
    see(page, "gpt2-unidetox-s1")
    see(page, "tp_id")
    assert page.get_by_text("loss", exact=True).count() == 0
    # What was measured stands beside the prompts that it was measured on, and says nothing of their text.
    see(page, "prompts")
    assert digests["prompts"][:8] in page.inner_text("body") and "velks" not in page.inner_text("body")
