"""leaderboard.json and .csv: the board's numbers, nothing else's, and no cell that a spreadsheet would run."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from board_rows import failed, made, rows

from unidetox_ray.leaderboard import board_of, cell_table, method_table, write_leaderboard
from unidetox_ray.leaderboard.files import safe_for_spreadsheets


@pytest.fixture
def written(tmp_path: Path):
    """(what leaderboard.json holds, leaderboard.csv as text columns) of a run with a failed cell."""
    board = board_of([*rows(), failed("gpt2", "=broken"), made("opt", "=broken", 0.7, 22.0, 30.0)])
    write_leaderboard(board, tmp_path)
    csv = pl.read_csv(tmp_path / "leaderboard.csv", infer_schema=False)
    return json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8")), csv


def test_the_json_has_methods_cells_and_who_is_on_no_front(written) -> None:
    found, _ = written
    assert [line["method"] for line in found["methods"]] == ["corpus", "decoding", "base", "=broken"]
    first = found["methods"][0]
    assert (first["rank"], first["families"], first["lowers"], first["compared"]) == (1, 2, 2, 2)
    assert first["tp_all"] == 0.5 and first["incomplete"] is None and first["front_clean_ratio"] is True
    assert "tp_all: 1 of 2; emt_all: 1 of 2" in found["methods"][-1]["incomplete"]
    assert found["methods"][-1]["rank"] is None
    cells = {line["cell"]: line for line in found["cells"]}
    decoding = cells["gpt2-decoding-s1"]
    assert (decoding["tp_all"], decoding["tp_all@words"], decoding["clean_ratio"]) == (0.2, 0.2, 5.0)
    assert decoding["tp_all_diff_high"] == pytest.approx(-0.6)
    assert decoding["decode_relative_cost"] == 4.0 and decoding["trainable_parameters"] is None
    broken = cells["gpt2-=broken-s1"]
    assert (broken["status"], broken["error"], broken["tp_all"], broken["front_ppl"]) == (
        "failed", "out of memory", None, None
    )  # fmt: skip
    assert found["on_no_front"] == {axis: ["gpt2-=broken-s1"] for axis in ("clean_ratio", "ppl")}


def test_the_csv_has_the_same_rows_and_no_formula(written) -> None:
    found, csv = written
    assert csv["row"].to_list() == ["mean"] * 4 + ["cell"] * 8
    means = csv.filter(pl.col("row") == "mean")
    assert means["method"].to_list() == ["corpus", "decoding", "base", "'=broken"]
    assert [float(value) for value in means["tp_all"]] == [line["tp_all"] for line in found["methods"]]
    cells = csv.filter(pl.col("row") == "cell")
    assert cells["cell"].to_list() == [line["cell"] for line in found["cells"]]
    assert float(cells["tp_all_diff"][2]) == pytest.approx(
        -0.7
    )  # a negative number is no formula and stays one
    for column in csv.columns:
        assert not [value for value in csv[column] if value and value[0] in "=+@\t\r"], column


def test_only_text_that_starts_a_formula_is_quoted() -> None:
    text = ["=1+1", "+a", "-a", "@SUM(A1)", "\tx", "\rx", "\nx", "a=b", "", None, "'=a", "1", "é"]
    table = pl.DataFrame({"text": text, "value": [-1.5] * len(text)})
    safe = safe_for_spreadsheets(table)
    assert safe["text"].to_list() == [f"'{value}" for value in text[:7]] + text[7:]
    assert safe["value"].to_list() == table["value"].to_list() and safe.schema == table.schema


def test_tables_keep_their_types_where_everything_failed() -> None:
    board = board_of([failed("gpt2", "base")])
    assert cell_table(board).schema["front_ppl"] == pl.Boolean and cell_table(board)["status"].to_list() == [
        "failed"
    ]
    methods = method_table(board)
    assert methods.schema["rank"] == pl.Int64 and methods.row(0, named=True)["families"] == 1


def test_a_run_without_rows_leaves_files_with_nothing_in_them(tmp_path: Path) -> None:
    write_leaderboard(board_of([]), tmp_path)
    found = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    assert (found["methods"], found["cells"]) == ([], [])
    assert len((tmp_path / "leaderboard.csv").read_text(encoding="utf-8").splitlines()) == 1
