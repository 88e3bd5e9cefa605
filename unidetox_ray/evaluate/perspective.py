"""Stored scores of the Perspective API, in the forms that people have them in.

The API ends with 2026 and is not called here. What is read, each also as .gz where it is text:

    RealToxicityPrompts' own lines      {"prompt": {"text", "toxicity", …}, "continuation": {"text", "toxicity", …}}
    its generations                     {"prompt": {…} or "…", "generations": [{"text", "toxicity", …}, …]}
    raw answers of the API              {"attributeScores": {"TOXICITY": {"summaryScore": {"value"}}}}, alone or under `response`
                                        beside the request or the text
    plain tables                        csv, tsv, jsonl, parquet with columns text and toxicity

The score taken is TOXICITY's summary score. A missing one is null with its reason, also where the answer was an error: other
programs write 0 there. A number outside [0, 1] is no probability, and ends the reading with its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.errors import DataError, printable
from unidetox_ray.evaluate.reading import rows_of

#: `row`: line or row of the file, from 1. `text`, `prompt`: null where the file does not hold them. `toxicity`: in [0, 1], null =
#: no score, and `error` says why.
STORED = {
    "row": pl.Int64,
    "source": pl.String,
    "prompt_id": pl.String,
    "prompt": pl.String,
    "text": pl.String,
    "continuation": pl.Int32,
    "domain": pl.String,
    "distribution": pl.String,
    "toxicity": pl.Float64,
    "error": pl.String,
}
_SCORES = (
    "toxicity",
    "TOXICITY",
    "Toxicity",
    "toxicity_score",
    "perspective_toxicity",
    "perspective_api_toxicity_score",
    "score",
)
#: Objects around a score.
_AROUND = ("attributeScores", "response", "perspective", "scores", "result")
_TEXTS = ("text", "continuation", "generation", "completion", "comment", "comment_text")
_LISTS = ("generations", "continuations", "completions")
_ERRORS = ("error", "exception")
_NO_NUMBER = {"", "nan", "na", "none", "null", "n/a"}
_ABSENT = object()


def read_scores(path: Path) -> pl.DataFrame:
    """Stored scores as a STORED table, one row per scored text, in the order of the file.

    Rows without a prompt_id get one from their prompt's text, so that texts of one prompt belong together, else one each.
    DataError: not a table, no score in any row, a score outside [0, 1] or that is no number (with its row).
    """
    found: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    scored = False
    columns: dict[str, None] = {}
    for number, row in enumerate(rows_of(path), start=1):
        if number <= 100:
            columns |= dict.fromkeys(map(str, row))
        prompt = _text_of(row.get("prompt"))
        given = row.get("prompt_id")
        prompt_id = (
            str(given)
            if given not in (None, "")
            else f"p-{prompt}"
            if prompt is not None
            else f"row-{number:07d}"
        )
        for text, value, error in _scored(row, f"{path} row {number}"):
            has = value is not _ABSENT
            scored = scored or has or error is not None
            score = value if has else None
            if score is None and error is None:
                error = "the score is missing" if has else "no score"
            if error is not None:
                score = None  # a number beside an error is what a program wrote for want of one
            at = counts.get(prompt_id, 0)
            counts[prompt_id] = at + 1
            found.append(
                {
                    "row": number, "source": _name(row.get("source")) or path.stem, "prompt_id": prompt_id, "prompt": prompt,
                    "text": text, "continuation": at, "domain": _name(row.get("domain")) or "all",
                    "distribution": _name(row.get("distribution")) or "id", "toxicity": score, "error": error,
                }
            )  # fmt: skip
    if not scored:
        held = ", ".join(repr(name[:40]) for name in list(columns)[:20])
        raise DataError(
            f"{path}: no toxicity score; it holds {held}; accepted: a column toxicity, RealToxicityPrompts' lines or generations, "
            "or the API's answers with attributeScores.TOXICITY"
        )
    return _with_ids(pl.DataFrame([{**row, **_unicode(row)} for row in found], schema=STORED))


def _with_ids(table: pl.DataFrame) -> pl.DataFrame:
    """prompt_id of a bounded length: ids made of a prompt's text become its hash."""
    from_text = pl.col("prompt").is_not_null() & (pl.col("prompt_id") == pl.lit("p-") + pl.col("prompt"))
    digest = pl.lit("p-") + pl.col("prompt").map_elements(_digest, return_dtype=pl.String)
    return table.with_columns(prompt_id=pl.when(from_text).then(digest).otherwise(pl.col("prompt_id")))


def _digest(text: str) -> str:
    import hashlib

    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _scored(row: Mapping[str, Any], where: str) -> Iterator[tuple[str | None, Any, str | None]]:
    """(text, score in [0, 1], None for a null or _ABSENT, error) of each text of a row."""
    whole = _error_of(row)
    for name in _LISTS:
        if isinstance(row.get(name), list):
            for number, each in enumerate(row[name]):
                place = f"{where}, {name}[{number}]"
                if isinstance(each, Mapping):
                    yield _text_of(each), _score_of(each, place), whole or _error_of(each)
                else:
                    yield _text_of(each), _ABSENT, whole
            return
    inner = row.get("continuation")
    if isinstance(inner, Mapping):
        yield _text_of(inner), _score_of(inner, where), whole or _error_of(inner)
        return
    text = next((found for name in _TEXTS if (found := _text_of(row.get(name))) is not None), None)
    if text is None and isinstance(row.get("request"), Mapping):
        text = _text_of(row["request"].get("comment"))
    yield text, _score_of(row, where), whole


def _score_of(value: Any, where: str) -> Any:
    """The toxicity in an object, however it is wrapped; None where it is null, _ABSENT where there is none."""
    if not isinstance(value, Mapping):
        return _ABSENT
    for name in _SCORES:
        if name in value:
            inside = value[name]
            if isinstance(inside, Mapping):
                inside = inside.get("summaryScore", inside)
                inside = inside.get("value") if isinstance(inside, Mapping) else inside
            return _number(inside, where)
    for name in _AROUND:
        if name in value and (found := _score_of(value[name], where)) is not _ABSENT:
            return found
    return _ABSENT


def _number(value: Any, where: str) -> float | None:
    if isinstance(value, str):
        if value.strip().lower() in _NO_NUMBER:
            return None
        try:
            value = float(value)
        except ValueError:
            raise DataError(
                f"{where}: the toxicity {value[:40]!r} is no number; give one in [0, 1] or leave it empty"
            ) from None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(
            f"{where}: the toxicity is {type(value).__name__}, not a number; give one in [0, 1] or null"
        )
    if math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise DataError(
            f"{where}: the toxicity {value:g} is outside [0, 1]; Perspective's scores are probabilities (divide percentages by 100)"
        )
    return float(value)


def _error_of(row: Mapping[str, Any]) -> str | None:
    """Why a row has no score, from its own account; the API's words can quote the text, so only its code is kept."""
    for holder in (row, row.get("response")):
        for name in _ERRORS:
            value = holder.get(name) if isinstance(holder, Mapping) else None
            if value in (None, "", False, {}, []):
                continue
            code = value.get("status") or value.get("code") if isinstance(value, Mapping) else None
            return printable(
                f"the API answered with an error ({code})" if code else "the API answered with an error"
            )[:100]
    return None


def _text_of(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("text")
    return value if isinstance(value, str) else None


def _name(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) and str(value) else None


def _unicode(row: Mapping[str, Any]) -> dict[str, str]:
    """Text fields with halves of surrogate pairs, which JSON can spell and no table holds, as replacement characters."""
    return {
        name: value.encode("utf-8", "replace").decode()
        for name, value in row.items()
        if isinstance(value, str) and not value.isascii()
    }
