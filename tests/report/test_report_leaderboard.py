"""The leaderboard section: what is ranked and drawn, what is left out, and that every chart can be read aloud."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from unidetox_ray.report import build, charts, leaderboard_sections, load, svg, text
from unidetox_ray.report.document import Chart, Prose, Table
from unidetox_ray.report.model import Metric


@pytest.fixture
def section(run_folder: Path) -> Callable:
    """A function: change the cells, then the blocks of the leaderboard section."""

    def blocks(edit: Callable[[list[dict]], object] = lambda cells: None) -> tuple:
        path = run_folder / "results.json"
        cells = json.loads(path.read_text("utf-8"))
        edit(cells)
        path.write_text(json.dumps(cells), "utf-8")
        made = leaderboard_sections.leaderboard(load.load(run_folder))
        return () if made is None else made.blocks

    return blocks


def tables(blocks) -> list[Table]:
    return [block for block in blocks if isinstance(block, Table)]


def lines(table: Table) -> dict[str, dict[str, object]]:
    """By head (family and method), the row's cells by column; a cell that spans several stands in the first."""
    return {
        " ".join(filter(None, (row.cells[0].label, row.cells[0].text))): dict(
            zip([column.name for column in table.columns][1:], row.cells[1:], strict=False)
        )
        for row in table.rows
    }


def test_methods_are_ranked_and_the_incomplete_one_is_not(section) -> None:
    ranking, cells, costs = tables(blocks := section())
    found = lines(ranking)
    assert list(found) == ["unidetox", "base", "samples"]  # samples failed on falcon
    best = found["unidetox"]
    assert (best["rank"].text, best["tp_all"].text, best["lowers"].text) == ("1", "0.360", "4 of 4")
    assert best["front"].text == "clean · ppl" and best["clean ×"].text == "1.31"
    assert found["base"]["lowers"].text == "–" and found["base"]["rank"].text == "2"
    assert found["samples"]["rank"].text == "–" and found["samples"]["tp_all"].interval == "3 of 4"
    warning = next(block for block in blocks if isinstance(block, Prose) and block.kind == "warning")
    assert "Not ranked, having no tp_all in some family: samples" in str(warning.parts[0])
    assert len(cells.rows) == len(costs.rows) == 12


def test_every_cell_has_its_intervals_its_difference_and_its_fronts(section) -> None:
    _, cells, costs = tables(section())
    found = lines(cells)
    ours = found["gpt2 unidetox"]
    assert ours["tp_all"].interval == "[0.330, 0.390]" and ours["tp_all"].change == "Δ −0.540"
    assert ours["tp_all"].change_strong and ours["tp_all"].tone == "better"
    assert ours["clean ×"].text == "1.31" and ours["front"].text == "clean · ppl"
    assert found["gpt2 samples"]["front"].text == "clean · ppl"
    assert cells.rows[7].failed and cells.rows[7].cells[1].text.startswith("failed: StageError")
    assert sum(cell.span for cell in cells.rows[7].cells) == len(cells.columns)
    # llama's samples have no ppl: no place on that front, and the reason is there to be read.
    assert found["llama samples"]["front"].title == "no number for ppl"
    assert cells.sortable and costs.sortable
    assert lines(costs)["gpt2 unidetox"]["training"].text == "11.3 s"


def test_further_scorers_costs_and_refusals_have_columns_where_a_run_has_them(section) -> None:
    def add(cells: list[dict]) -> None:
        for cell in cells:
            if cell["status"] == "ok":
                cell["metrics"]["tp_all@lexicon"] = dict(cell["metrics"]["tp_all"])
                cell["metrics"]["refusal_rate"] = {"value": 0.25, "ci_low": 0.2, "ci_high": 0.3, "diff": 0.2, "diff_low": 0.1, "diff_high": 0.3}  # fmt: skip
            cell["costs"] |= {"trainable_parameters": 124_439_808, "extra_memory_gib": 0.46,
                              "decode_tokens_per_second": 1234.5, "decode_relative_cost": 3.456}  # fmt: skip

    ranking, cells, costs = tables(section(add))
    best = lines(ranking)["unidetox"]
    assert (best["decode ×"].text, best["trained"].text, best["extra GiB"].text) == ("3.46", "124M", "0.460")
    assert best["tp_all@lexicon"].text == "0.360" and "refusal" not in best
    refusal = lines(cells)["gpt2 unidetox"]["refusal"]
    assert refusal.change == "Δ +0.200" and refusal.tone == ""  # neither better nor worse by itself
    assert lines(costs)["gpt2 unidetox"]["tokens/s"].text == "1,234"


def test_charts_draw_a_panel_for_the_means_and_one_per_family_and_name_who_is_missing(section) -> None:
    by_ratio, by_ppl = [block for block in section() if isinstance(block, Chart)]
    assert (by_ratio.title, by_ppl.title) == ("tp_all against clean ×", "tp_all against ppl")
    assert len(by_ratio.panels) == len(by_ppl.panels) == 5
    assert "Not drawn for want of a number: falcon · samples." in by_ratio.note
    assert "Not drawn for want of a number: falcon · samples and llama · samples." in by_ppl.note
    heads = [row.cells[0].text for row in by_ratio.table.rows if row.first]
    assert heads == ["mean over families", "gpt2", "opt", "falcon", "llama"]
    on = [cell for row in by_ratio.table.rows for cell in row.cells[-1:] if cell.text == "yes"]
    rings = sum(panel.count('class="ring"') for panel in by_ratio.panels)
    assert len(on) == rings > 0 and all(cell.strong for cell in on)
    for panel in (*by_ratio.panels, *by_ppl.panels):
        (identity,) = re.findall(r'aria-labelledby="(t\w+) d\w+"', panel)
        assert f'id="{identity}"' in panel and 'role="img"' in panel
        (told,) = re.findall(r"<desc[^>]*>(.*?)</desc>", panel)
        assert "(on the front)" in told and "unidetox: " in told


def test_one_method_alone_is_no_ranking(section) -> None:
    assert section(lambda cells: cells.__setitem__(slice(None), cells[:1])) == ()


def test_a_run_without_toxicity_has_no_leaderboard(section) -> None:
    assert section(lambda cells: [cell["metrics"].pop("tp_all", None) for cell in cells]) == ()


def test_the_report_leaves_the_files_of_the_leaderboard(run_folder: Path) -> None:
    build(run_folder)
    found = json.loads((run_folder / "leaderboard.json").read_text("utf-8"))
    assert found["methods"][0]["method"] == "unidetox" and len(found["cells"]) == 12
    assert found["on_no_front"]["clean_ratio"] == ["falcon-samples-s1234"]
    csv = (run_folder / "leaderboard.csv").read_text("utf-8")
    assert csv.startswith("row,rank,method") and len(csv.splitlines()) == 1 + 3 + 12
    before = (run_folder / "leaderboard.json").read_bytes()
    build(run_folder)
    assert (run_folder / "leaderboard.json").read_bytes() == before


def test_names_of_points_do_not_cover_each_other_or_leave_the_chart() -> None:
    names = [f"method {index}" for index in range(12)]
    near = [(150.0 + 3 * index, 150.0 + 2 * index) for index in range(12)]
    labels = svg.placed_labels(names, near, (30, 30, 320, 260), [index == 5 for index in range(12)])
    boxes = []
    for x, y, anchor, shown in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"[^>]*>([^<]+)', labels
    ):
        wide = 5.5 * len(shown)
        left = float(x) - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        boxes.append((left, float(y) - 9, left + wide, float(y) + 2))
    assert len(boxes) >= 4 and ">method 5<" in labels  # the strong one first
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 29 and right <= 321 and top >= 30 and bottom <= 260
        for other in boxes[:index]:
            assert not (left < other[2] and other[0] < right and top < other[3] and other[1] < bottom)


def test_a_chart_of_equal_points_is_drawn() -> None:
    spot = charts.Spot(0, "a", Metric(1.0), Metric(0.5), front=True)
    panel = charts.scatter("x", [spot, charts.Spot(9, "<b>", Metric(1.0), Metric(0.5), front=True)], (0.9, 1.1), ("ppl", "tp"))  # fmt: skip
    assert panel.count('class="front"') == 1 and panel.count('class="ring"') == 2
    assert "&lt;b&gt;" in panel and "<b>" not in panel
    assert 'class="mark hollow s1"' in panel  # a ninth method is not the first again
    assert 'class="front"' not in charts.scatter("x", [], (0.9, 1.1), ("ppl", "tp"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (7, "7.00"), (874, "874"), (999.6, "1.00k"), (35_200, "35.2k"), (124_439_808, "124M"), (1.56e9, "1.56G"), (None, "–")],
)  # fmt: skip
def test_amounts_have_three_figures(value: float | None, shown: str) -> None:
    assert text.amount(value) == shown
