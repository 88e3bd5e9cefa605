"""Nothing that a model or a data file wrote becomes markup, and no text is readable unless asked for."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from unidetox_ray.report import build, build_search, html, markdown, text

ALLOWED_SCRIPTS = 1


def tokens(source: str) -> list[str]:
    """Kinds of all Markdown tokens, those inside lines included, with tables recognised."""
    found = []
    for block in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(source):
        found.append(block.type)
        found += [child.type for child in block.children or []]
    return found


@pytest.mark.parametrize("show_text", [False, True])
def test_html_has_no_foreign_element_and_asks_for_nothing(run_folder: Path, show_text: bool) -> None:
    source = build(run_folder, show_text=show_text).html.read_text("utf-8")
    assert len(re.findall(r"<script", source)) == ALLOWED_SCRIPTS
    assert not re.search(r"<(img|link|iframe|object|embed|form|base)\b", source)
    assert not re.search(r"\bon[a-z]+=|url\(|@import", source)
    assert set(re.findall(r'href="([^"]*)"', source)) == {
        f"#{key}" for key in re.findall(r'<section id="([a-z]+)"', source)
    }
    assert "src=" not in source.replace("script-src", "")


@pytest.mark.parametrize("show_text", [False, True])
def test_no_terminal_codes_in_either_format(run_folder: Path, show_text: bool) -> None:
    paths = build(run_folder, show_text=show_text)
    for path in (paths.html, paths.markdown):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", path.read_text("utf-8"))


@pytest.mark.parametrize("show_text", [False, True])
def test_markdown_has_no_html_link_or_image(run_folder: Path, show_text: bool) -> None:
    source = build(run_folder, show_text=show_text).markdown.read_text("utf-8")
    assert not {"html_block", "html_inline", "link_open", "image", "code_inline"} & set(tokens(source))


def test_text_is_masked_unless_asked_for(run_folder: Path, hostile: dict[str, str]) -> None:
    for path in (build(run_folder).html, build(run_folder).markdown, build_search(run_folder)):
        source = path.read_text("utf-8")
        assert not any(word in source for word in hostile["words"].split())
    assert "g••••••• q•••••••• d••••• m••••••••" in (run_folder / "report.md").read_text("utf-8")
    for path in (build(run_folder, show_text=True).html, run_folder / "report.md"):
        assert hostile["words"] in path.read_text("utf-8")


def test_secrets_of_the_configuration_are_not_shown(run_folder: Path) -> None:
    paths = build(run_folder)
    for path in (paths.html, paths.markdown):
        source = path.read_text("utf-8")
        assert "hunter" not in source and "tracking.invalid" in source


def test_hostile_names_stay_text(run_folder: Path) -> None:
    path = run_folder / "results.json"
    cells = json.loads(path.read_text("utf-8"))
    for entry in cells:
        entry["family"] += "\"'><img src=x onerror=alert(2)>"
        entry["method"] = entry["method"].replace("samples", "a|b`c`\n# x ![y](z) </table>")
        entry["scorer"] = "<svg onload=alert(3)>"
    path.write_text(json.dumps(cells), "utf-8")
    paths = build(run_folder)
    source = paths.html.read_text("utf-8")
    assert "<img" not in source and "<svg onload" not in source and "\n# x" not in source
    assert source.count("</table>") == source.count("<table")
    assert not {"html_inline", "html_block", "image", "link_open", "code_inline"} & set(
        tokens(paths.markdown.read_text("utf-8"))
    )


def test_a_text_with_lone_surrogates_can_be_shown() -> None:
    assert html.escape("a\ud800b").encode("utf-8") == b"a?b"
    assert markdown.escape("a\ud800b").encode("utf-8") == b"a?b"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_html_as_text(raw: str) -> None:
    shown = html.escape(raw)
    assert "<" not in shown and '"' not in shown
    assert unescape(shown) == raw


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab1 .-+#*_`~[]()<>|&!:/\\\n=$@"), max_size=40))
def test_any_text_is_one_plain_paragraph_in_markdown(raw: str) -> None:
    kinds = set(tokens(markdown.escape(raw)))
    assert kinds <= {"paragraph_open", "inline", "paragraph_close", "text", "text_special"}
    parsed = MarkdownIt("commonmark").parse(markdown.escape(raw))
    words = "".join(child.content for block in parsed for child in block.children or [])
    assert words == " ".join(raw.split())


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_masked_text_keeps_at_most_the_first_letter_of_each_word(raw: str) -> None:
    masked = text.sample(raw, show_text=False)
    assert len(masked) <= 280
    for word in re.findall(r"[^\W_]+", masked):
        assert len(word) == 1


def test_cleaning_removes_terminal_codes_and_direction_marks() -> None:
    assert text.clean("\x1b[31mred\x1b[0m \x1b]0;t\x07x\u202ey\x00\r\nz") == "red xy z"
    assert text.clean("abcdef", 4) == "abc…"


def test_samples_of_a_corpus_without_lengths_are_still_shown(run_folder: Path) -> None:
    pl.DataFrame({"text": ["one two", None]}).write_parquet(run_folder / "corpus.parquet")
    assert "o•• t••" in build(run_folder).markdown.read_text("utf-8")
