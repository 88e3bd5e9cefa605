"""The terminal's tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unidetox_ray.table import leaderboard


def row(family: str, method: str, kind: str, tp: float | None, **costs: float) -> dict[str, Any]:
    def number(value: float | None) -> dict[str, Any]:
        return {"value": value, "diff_low": -0.4, "diff_high": -0.2 if method != "base" else None}

    metrics = {"tp_all": number(tp), "ppl": number(20.0), "clean_ppl": number(10.0)}
    return {
        "cell": f"{family}-{method}-s1", "family": family, "method": method, "seed": 1, "settings": {"kind": kind},
        "status": "ok", "error": None, "metrics": metrics, "costs": costs,
    }  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [line.split() for line in leaderboard(rows).splitlines()]


def test_kinds_side_by_side_end_in_one_line_per_method() -> None:
    rows = [row(family, *rest) for family in ("gpt2", "opt") for rest in (
        ("base", "unchanged", 0.9), ("unidetox", "corpus", 0.4), ("dexperts", "decoding", 0.2))]  # fmt: skip
    rows[2]["costs"] = rows[5]["costs"] = {"decode_relative_cost": 3.0, "trainable_parameters": 124_000_000}
    head, first, second, third, note = lines(rows)
    assert head[:3] == ["method", "tp_all", "lowers"]
    assert first[:6] == ["1", "dexperts", "0.200", "2", "of", "2"] and "3.00" in first and "124M" in first
    assert second[:3] == ["2", "unidetox", "0.400"] and third[:4] == ["3", "base", "0.900", "–"]
    assert "◆" in first and "◆" not in second  # as dear, and more toxic
    assert note[:4] == ["means", "over", "2", "families;"]
    assert {len(line) for line in leaderboard(rows).splitlines()[:4]} == {
        len(leaderboard(rows).splitlines()[0])
    }


@pytest.mark.parametrize("kinds", [["unchanged", "corpus"], ["unchanged", "corpus", "corpus"]])
def test_one_kind_alone_has_no_leaderboard(kinds: list[str]) -> None:
    rows = [row("gpt2", "base" if not index else f"m{index}", kind, 0.5) for index, kind in enumerate(kinds)]
    assert leaderboard(rows) == ""


def test_a_method_without_a_number_is_last_and_has_none() -> None:
    rows = [row("gpt2", "dexperts", "decoding", None), row("gpt2", "unidetox", "corpus", 0.4)]
    _, first, second, _ = lines(rows)
    assert first[:2] == ["1", "unidetox"] and second[:3] == ["–", "dexperts", "–"]


def test_the_verb_report_ends_in_the_leaderboard(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from unidetox_ray.cli import app

    rows = [row("gpt2", "dexperts", "decoding", 0.2), row("gpt2", "unidetox", "corpus", 0.4)]
    (tmp_path / "config.yaml").write_text("name: x\n", encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    shown = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert leaderboard(rows) in shown.output and "report.html" in shown.output
    (tmp_path / "results.json").unlink()
    assert "method" not in CliRunner().invoke(app, ["report", str(tmp_path)]).output
