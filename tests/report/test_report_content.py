"""What a report says: verdict, numbers, failed cells, order, missing and damaged parts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
import yaml

from unidetox_ray.errors import ArtifactError
from unidetox_ray.report import build, build_search, load, readers, text, verdict
from unidetox_ray.report.document import Points, Prose
from unidetox_ray.report.search import best_yaml


class Page(HTMLParser):
    """Section titles, table rows as lists of cell texts, and all visible text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        elif tag == "h2":
            self.titles.append("")
        if tag in ("meta",):
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open or "style" in self._open:
            return
        self.words.append(data)
        if "tr" in self._open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data
        if self._open and self._open[-1] == "h2":
            self.titles[-1] += data


@pytest.fixture
def page(run_folder: Path) -> Page:
    return Page(build(run_folder).html.read_text("utf-8"))


def change(folder: Path, edit: Callable[[list[dict]], None]) -> None:
    path = folder / "results.json"
    cells = json.loads(path.read_text("utf-8"))
    edit(cells)
    path.write_text(json.dumps(cells), "utf-8")


def verdict_of(folder: Path) -> tuple[str, dict[str, str]]:
    blocks = verdict.blocks(load.load(folder))
    lead = "".join(
        p if isinstance(p, str) else p[0] for b in blocks[:1] if isinstance(b, Prose) for p in b.parts
    )
    return lead, dict(item for block in blocks if isinstance(block, Points) for item in block.items)


def test_sections_come_in_the_promised_order(page: Page) -> None:
    assert page.titles == [
        "Results",
        "Leaderboard",
        "Domains",
        "Search",
        "Training",
        "Corpus",
        "Cost",
        "Protocol",
        "Further metrics",
        "Second scorers",
        "Provenance",
        "Notes on the methods",
    ]


def test_headline_shows_value_interval_and_paired_difference(page: Page) -> None:
    head = next(row for row in page.rows if row and row[0] == "family · method")
    assert head[1:] == ["tp_id", "tp_ood", "emt_id", "emt_ood", "ppl", "dist2", "clean_ppl", "mmlu"]
    row = next(row for row in page.rows if row and row[0] == "gpt2unidetox")
    assert row[1] == "0.372 [0.342, 0.402] Δ −0.558 [−0.588, −0.528]"


def test_only_differences_whose_interval_excludes_zero_are_bold(run_folder: Path) -> None:
    source = build(run_folder).html.read_text("utf-8")
    assert "<b>Δ −0.558</b>" in source
    assert "Δ −0.0200</span>" in source and "<b>Δ −0.0200</b>" not in source


def test_a_failed_cell_is_shown_as_failed_and_has_no_number(page: Page) -> None:
    row = next(row for row in page.rows if row and row[0] == "falconsamples")
    assert len(row) == 2 and row[1].startswith("failed: StageError: loss is not finite")


def test_a_withheld_value_is_a_dash_with_its_reason(run_folder: Path) -> None:
    paths = build(run_folder)
    assert 'title="withheld: 17 judgements failed"' in paths.html.read_text("utf-8")
    assert "llama samples, ppl: withheld: 17 judgements failed" in paths.markdown.read_text("utf-8")


def test_verdict_counts_families_and_relative_changes(run_folder: Path) -> None:
    lead, points = verdict_of(run_folder)
    assert "12 cells, 1 failed and not counted" in lead
    assert "unidetox lowers all four toxicity measures in 4 of 4 families" in lead
    assert "fall in 4 of 4 families; median relative change: tp_id −60.0 %" in points["unidetox"]
    assert "multiple of base: 1.31; the paired interval shows a rise in 4 of 4" in points["unidetox"]
    assert "Quiz accuracy changes by −2.00 points; no paired interval excludes 0" in points["unidetox"]
    assert "3 of 3 families" in points["samples"]


def test_verdict_does_not_claim_what_an_interval_leaves_open(run_folder: Path) -> None:
    def widen(cells: list[dict]) -> None:
        for cell in cells:
            if cell["method"] == "unidetox" and cell["family"] in ("opt", "llama"):
                cell["metrics"]["tp_id"] |= {"diff_low": -1.2, "diff_high": 0.1}
            if cell["method"] == "unidetox" and cell["family"] == "gpt2":
                cell["metrics"]["tp_id"] |= {"diff": 0.2, "diff_low": 0.1, "diff_high": 0.3}

    change(run_folder, widen)
    lead, points = verdict_of(run_folder)
    assert "unidetox lowers all four toxicity measures in 1 of 4 families and some of them in 3 more" in lead
    assert "raises at least one in 1" in lead
    expected = "tp_id falls in 1 of 4 families, rises in 1, unclear in 2 (the interval includes 0)"
    assert expected in points["unidetox"]


def test_verdict_makes_no_comparison_without_a_base(run_folder: Path) -> None:
    change(run_folder, lambda cells: cells.__setitem__(slice(None), [
        cell | {"metrics": {name: {"value": m["value"]} for name, m in cell["metrics"].items()}}
        for cell in cells if cell["method"] == "unidetox"
    ]))  # fmt: skip
    lead, points = verdict_of(run_folder)
    assert "has no cell that can be compared" in lead
    assert "no comparison with base" in points["unidetox"] and "lowers" not in lead


def test_values_that_are_no_finite_numbers_never_become_numbers(run_folder: Path) -> None:
    def spoil(cells: list[dict]) -> None:
        cells[2]["metrics"]["tp_id"]["value"] = float("nan")
        cells[2]["metrics"]["tp_ood"] = None
        cells[2]["metrics"]["mmlu"] = {"value": "0.4"}

    change(run_folder, spoil)
    rows = Page(build(run_folder).html.read_text("utf-8")).rows
    row = next(row for row in rows if row and row[0] == "gpt2unidetox")
    assert row[1].startswith("–") and row[2] == "–" and row[8] == "–"


def test_two_seeds_of_a_cell_are_told_apart(run_folder: Path) -> None:
    change(run_folder, lambda cells: cells.append(cells[2] | {"seed": 7, "cell": "gpt2-unidetox-s7"}))
    heads = [row[0] for row in Page(build(run_folder).html.read_text("utf-8")).rows if row]
    assert "gpt2unidetox (seed 1234)" in heads and "gpt2unidetox (seed 7)" in heads
    assert "of 5 cells" in verdict_of(run_folder)[0]


def test_second_scorer_and_all_other_metrics_have_tables_of_their_own(page: Page) -> None:
    heads = [row for row in page.rows if row and row[0] == "family · method"]
    assert [row[1:] for row in heads[-2:]] == [["tp_all", "emt_all"], ["tp_id@lexicon", "emt_id@lexicon"]]


def test_search_marks_the_chosen_cell_and_names_the_failed_trial(run_folder: Path) -> None:
    source = build(run_folder).html.read_text("utf-8")
    assert source.count('class="chosen"') == 1 and "0.120 ★" in source
    assert "120 steps, learning rate 0.001" in source and "constant: one training per learning rate" in source
    assert "failed: loss is not finite" in source


def test_protocol_and_provenance_hold_settings_keys_and_hashes(page: Page) -> None:
    words = " ".join(page.words)
    settings = ("evaluate.continuations", "evaluate.top_p", "finetune.lr", "5e-4")
    for expected in (*settings, "0a1b" * 10, "torch", "2.13.0", "0" * 16, "clean efefefefefef"):
        assert expected in words


def test_markdown_holds_the_numbers_of_the_charts(run_folder: Path) -> None:
    source = build(run_folder).markdown.read_text("utf-8")
    assert "| gpt2 | glims | id | unidetox | 0.380 " in source
    assert "| 120 | 0.723 | 0.244 | **0.120 ★** |" in source
    assert re.search(r"^\| gpt2 \| toxic model \| 700 \| 3\.\d+ ", source, re.MULTILINE)


@pytest.mark.parametrize(
    "part", ["search.json", "config.yaml", "corpus.parquet", "corpora", "models", "stages", "results.json"]
)
def test_a_missing_part_leaves_the_rest(run_folder: Path, part: str) -> None:
    (run_folder / part).rename(run_folder.parent / "elsewhere")
    titles = Page(build(run_folder).html.read_text("utf-8")).titles
    assert {"Results", "Protocol", "Provenance", "Notes on the methods"} <= set(titles)
    absent = {"search.json": "Search", "models": "Training", "results.json": "Domains"}.get(part)
    assert absent is None or absent not in titles


def test_an_empty_folder_gives_a_report_that_says_so(tmp_path: Path) -> None:
    paths = build(tmp_path)
    assert "No results yet" in paths.markdown.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


@pytest.mark.parametrize("part", ["search.json", "config.yaml", "corpus.parquet",
                                  f"models/toxic-gpt2-{'0' * 16}/train_log.parquet"])  # fmt: skip
def test_a_damaged_part_is_named_in_the_report(run_folder: Path, part: str) -> None:
    (run_folder / part).write_bytes(b"{\xff: [")
    assert f"Not shown: {part} could not be read" in " ".join(
        Page(build(run_folder).html.read_text("utf-8")).words
    )


@pytest.mark.parametrize("content", ["{", "{}", "[3]", '[{"family": "gpt2"}]'])
def test_damaged_results_are_an_error_of_one_line(run_folder: Path, content: str) -> None:
    (run_folder / "results.json").write_text(content, "utf-8")
    with pytest.raises(ArtifactError) as raised:
        build(run_folder)
    assert "results.json" in str(raised.value) and "\n" not in str(raised.value)
    assert not (run_folder / "report.html").exists()


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a folder"):
        build(tmp_path / "nowhere")


def test_the_same_folder_gives_the_same_bytes(run_folder: Path) -> None:
    first = build(run_folder).html.read_bytes()
    assert build(run_folder).html.read_bytes() == first


def test_search_report_offers_the_best_setting_as_yaml(run_folder: Path) -> None:
    source = build_search(run_folder).read_text("utf-8")
    found = re.search(r"<pre><code>(.*?)</code></pre>", source, re.DOTALL)
    assert found is not None
    assert yaml.safe_load(found[1]) == {
        "finetune": {"steps": 120, "lr": 1e-3, "schedule": "constant", "batch_size": 8, "lora": {"rank": 16}}
    }
    assert source.count("<polyline") == 3
    assert "schedule of the search" in source and "schedule of the fine-tuning" in source
    assert "not measured under it" not in source


def test_another_schedule_than_the_searchs_is_said_and_is_what_the_yaml_holds(run_folder: Path) -> None:
    search = json.loads((run_folder / "search.json").read_text("utf-8"))
    search |= {"finetune_schedule": "linear", "finetune": {**search["finetune"], "schedule": "linear"}}
    (run_folder / "search.json").write_text(json.dumps(search), "utf-8")
    caution = "trained with schedule constant, the cells are fine-tuned with schedule linear"
    for source in (build_search(run_folder).read_text("utf-8"), build(run_folder).html.read_text("utf-8")):
        assert caution in source and "not measured under it" in source
    written = best_yaml(search)
    assert yaml.safe_load(written)["finetune"]["schedule"] == "linear"
    comments = [line for line in written.splitlines() if line.startswith("#")]
    assert search["reason"] in comments[0] and caution in comments[1] and len(comments) == 2


def test_search_report_needs_only_search_json(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_bytes((run_folder / "search.json").read_bytes())
    assert build_search(tmp_path) == tmp_path / "search_report.html"
    (tmp_path / "search.json").write_text("[]", "utf-8")
    with pytest.raises(ArtifactError, match="no mapping"):
        build_search(tmp_path)


def test_small_learning_rates_stay_numbers_in_the_yaml(run_folder: Path) -> None:
    search = json.loads((run_folder / "search.json").read_text("utf-8"))
    search["chosen"] = {"steps": 3000, "lr": 5e-5}
    (run_folder / "search.json").write_text(json.dumps(search), "utf-8")
    found = re.search(
        r"<pre><code>(.*?)</code></pre>", build_search(run_folder).read_text("utf-8"), re.DOTALL
    )
    assert found is not None and yaml.safe_load(found[1])["finetune"]["lr"] == 5e-5


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.41249, "0.412"), (0.9996, "1.00"), (12.345, "12.3"), (12345.6, "12,300"), (0, "0"),
     (-0.0612, "−0.0612"), (None, "–"), (float("nan"), "–"), (float("inf"), "–"), (0.00001234, "1.23e−5"), (True, "–")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(5e-5, "5e-5"), (1e-4, "1e-4"), (0.001, "0.001"), (1.5e-5, "1.5e-5")]
)
def test_learning_rates_are_written_as_people_write_them(value: float, shown: str) -> None:
    assert text.rate(value) == shown


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    losses = [float(step % 7) for step in range(10_000)]
    points = readers.thin(list(range(10_000)), losses)
    assert len(points) == 200 and points[0] == (0.0, 0.0) and points[-1] == (9999.0, losses[-1])
    middle = [loss for _, loss in points[1:-1]]
    assert abs(sum(middle) / len(middle) - 3.0) < 0.05
    assert readers.thin([1, 2, 3], [1.0, float("nan"), 3.0]) == [(1.0, 1.0), (3.0, 3.0)]


def test_corpus_numbers_come_from_the_table(run_folder: Path, page: Page) -> None:
    table = pl.read_parquet(run_folder / "corpus.parquet")
    row = next(row for row in page.rows if row and row[0] == "corpus.parquet (unidetox)")
    assert row[1] == "640" and row[2] == f"{table['n_tokens'].sum():,}"
    assert row[7] == readers.sha256(run_folder / "corpus.parquet")[:16]


def test_stages_of_older_settings_are_left_out(run_folder: Path) -> None:
    run = load.load(run_folder)
    folders = {manifest.folder for manifest in run.manifests}
    assert f"stages/score-{'7' * 16}" in folders and f"models/toxic-gpt2-{'0' * 16}" in folders
    assert f"stages/search-{'5' * 16}" in folders
    assert f"stages/score-{'f' * 16}" not in folders and f"models/toxic-gpt2-{'e' * 16}" not in folders
    assert [curve.steps for curve in run.curves if curve.method == "toxic model"] == [700]
    assert {curve.cell for curve in run.curves if curve.method != "toxic model"} == {
        cell.cell for cell in run.cells if cell.method != "base" and cell.ok
    }


def test_a_corpus_is_listed_once(run_folder: Path) -> None:
    assert [corpus.label for corpus in load.load(run_folder).corpora] == [
        "corpus.parquet (unidetox)",
        "corpora/samples.parquet",
    ]
