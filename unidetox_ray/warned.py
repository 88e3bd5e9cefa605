"""What our files say about the text in them, and CSV cells that no spreadsheet takes for a formula.

Parquet carries the warning in its metadata; a csv or jsonl file, which has no place for one that other readers would not take for
a row, has it beside it in `<name>-metadata.json` (the name that the W3C gives to the metadata of a CSV file).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

WARNING = (
    "Holds text that a model wrote or that was collected to study hate speech. It can be hateful. Not for display, "
    "publication or training of a model that is to be used."
)
KEY = "content_warning"
#: Columns of our tables that hold such text.
TEXT_COLUMNS = {"text", "Text", "prompt", "question", "choices", "ngram", "word"}

_SIGN = "=+\\-@＝＋－＠"  # the full-width ones count in some spreadsheets
_START = rf"'*(?:\s*[{_SIGN}]|[\t\r\n])"
_AFTER = rf"'*\s*[{_SIGN}]"  # a spreadsheet whose separator is ";" begins a new cell there
_NEUTRAL = re.compile(rf"\A(?={_START})|(?<=;)(?={_AFTER})")
_RESTORED = re.compile(rf"\A'(?={_START})|(?<=;)'(?={_AFTER})")


def metadata_of(columns: Iterable[str]) -> dict[str, str] | None:
    """What a parquet file with these columns says about itself; None where it holds no such text."""
    return {KEY: WARNING} if TEXT_COLUMNS & set(columns) else None


def metadata_path(path: Path) -> Path:
    return path.with_name(f"{path.name}-metadata.json")


def neutral(text: str) -> str:
    """The text with an apostrophe before each place where a spreadsheet would begin a formula; `restored` undoes it.

    Such places: the start of a cell and what follows ";", before `= + - @`, blanks and apostrophes between them aside; and a
    cell that begins with a tab or a line end (CWE-1236).
    """
    return _NEUTRAL.sub("'", text)


def restored(text: str) -> str:
    """The text that `neutral` was given."""
    return _RESTORED.sub("", text)


def corpus_csv(texts: Sequence[str]) -> str:
    """A corpus in the released layout, one column `Text`, every field quoted, cells neutral."""
    quoted = (neutral(text).replace('"', '""') for text in texts)
    return "".join(f'"{cell}"\n' for cell in ("Text", *quoted))


def is_corpus_csv(source: str, cells: Sequence[str]) -> bool:
    """Whether a CSV file is one that `corpus_csv` wrote: its header, and no cell that is not neutral.

    source: the file's text. Another program's file is read as it is, apostrophes and all.
    """
    return source.startswith('"Text"\n') and all(neutral(restored(cell)) == cell for cell in cells)
