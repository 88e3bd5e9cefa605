"""How values become words: numbers, intervals, durations, and text that a model or a data file wrote.

Nothing here escapes for a format; `html.escape` and `markdown.escape` do that at the end, for everything.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import TypeGuard

MISSING = "\u2013"  # en dash
MINUS = "\u2212"  # minus sign
TIMES = "\u00d7"

_TERMINAL_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
_WORD = re.compile(r"[^\s!-/:-@\[-`{-~]+")


def is_number(value: object) -> TypeGuard[float]:
    """True for a finite int or float; False for None, booleans, NaN, infinities and anything else."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: float | None, signed: bool = False) -> str:
    """Three significant digits with a real minus sign; `MISSING` for a value that is absent or not finite."""
    if value is None or not is_number(value):
        return MISSING
    rounded = float(f"{value:.3g}")
    size = abs(rounded)
    if size == 0:
        text = "0"
    elif size >= 1e7 or size < 1e-4:
        mantissa, _, exponent = f"{size:.2e}".partition("e")
        text = f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    else:
        text = f"{size:,.{max(0, 2 - math.floor(math.log10(size)))}f}"
    if rounded < 0:
        return MINUS + text
    return "+" + text if signed and rounded > 0 else text


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """`[low, high]`, or an empty string when either end is absent."""
    if low is None or high is None or not (is_number(low) and is_number(high)):
        return ""
    return f"[{number(low, signed)}, {number(high, signed)}]"


def percent(share: float | None, signed: bool = False) -> str:
    """A share (0.25 = 25 %) as a percentage of three significant digits."""
    if share is None or not is_number(share):
        return MISSING
    return f"{number(100 * share, signed)} %"


def count(value: float | None) -> str:
    """An exact whole number with thousands separators."""
    return f"{round(value):,}" if value is not None and is_number(value) else MISSING


def amount(value: float | None) -> str:
    """A large whole number in three figures: 874, 35.2k, 124M, 1.56G."""
    if value is None or not is_number(value):
        return MISSING
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return number(value / size) + letter
    return number(value)


def rate(value: float | None) -> str:
    """A learning rate as people write it: 5e-5, 1e-4, 0.001."""
    if value is None or not is_number(value):
        return MISSING
    if 1e-3 <= abs(value) < 1e3 or value == 0:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def seconds(value: float | None) -> str:
    """A duration: 0.42 s, 12.3 s, 4 min 05 s, 3 h 07 min."""
    if value is None or not is_number(value):
        return MISSING
    if value < 100:
        return f"{number(value)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def clean(text: object, limit: int | None = None) -> str:
    """One line of printable text: terminal codes, control, format and bidirectional characters removed.

    `limit` is the greatest number of characters kept; a longer text ends in "…".
    """
    line = _TERMINAL_CODES.sub("", str(text))
    line = "".join(" " if char.isspace() else char for char in line)
    line = "".join(char for char in line if unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn"})
    line = " ".join(line.split())
    if limit is not None and len(line) > limit:
        line = line[: max(1, limit - 1)].rstrip() + "…"
    return line


def without_secrets(text: str) -> str:
    """A URI without the user name and password it may carry."""
    return _USER_INFO.sub("", text)


def mask(text: str) -> str:
    """Every word cut to its first letter, the rest as dots of the same number: "hello you" -> "h•••• y••".

    A word is a run without blanks and ASCII punctuation, so that marks on letters are masked in every script.
    """
    return _WORD.sub(lambda match: match[0][0] + "•" * (len(match[0]) - 1), text)


def sample(text: str, show_text: bool, limit: int = 280) -> str:
    """What the report shows of a text: masked unless `show_text`, one line, at most `limit` characters."""
    line = clean(text, limit)
    return line if show_text else mask(line)


def plural(amount: int, one: str, many: str | None = None) -> str:
    """`3 families`, `1 family`."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]
