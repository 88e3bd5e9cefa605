"""Generations as parts on disk: read or generated once, then scored part by part, so that no text stays in memory.

<work>/<source key>/part-00000.parquet …   rows of PART
<work>/<source key>/parts.json             written last: present = whole
<work>/<source key>/<scorer key>/part-00000.parquet …   toxicity and error of each row of the part
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import private_folder, read_json, write_json, write_parquet
from unidetox_ray.evaluate.cells import name_in, texts_in, whole_in
from unidetox_ray.evaluate.columns import Columns

#: One generation. `text` null = it failed, `error` says why. `prompt_key`: digest of the prompt's text, null without one.
#: `row`: in the file or table it comes from, from 1.
PART = {
    "row": pl.Int64,
    "source": pl.String,
    "prompt_id": pl.String,
    "prompt_key": pl.String,
    "prompt": pl.String,
    "text": pl.String,
    "error": pl.String,
    "run": pl.Int32,
    "continuation": pl.Int32,
    "domain": pl.String,
    "distribution": pl.String,
}
ROWS = 4096
#: A part of long texts has fewer rows.
_CHARACTERS = 2**25
NO_DOMAIN = "all"
NO_DISTRIBUTION = "id"


@dataclass(frozen=True)
class Parts:
    """The generations of one argument. `told`: which columns were taken. `explicit`: the prompts have ids of their own."""

    folder: Path
    files: tuple[str, ...]
    rows: int
    failed: int
    explicit: bool
    has_prompts: bool
    has_domains: bool
    told: str

    def __iter__(self) -> Iterator[Path]:
        return (self.folder / name for name in self.files)


def distribution_in(value: Any) -> str:
    """The name of a distribution as results can hold it, apart from the names of our own."""
    name = _storable(name_in(value) or NO_DISTRIBUTION).replace("@", " at ")
    return f"distribution {name}" if name in ("all", "pooled") or name.isdigit() else name


def prompt_key(prompt: str | None) -> str | None:
    """A digest that is the same wherever the prompt has the same text."""
    if prompt is None:
        return None
    return hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8).hexdigest()


def finished(folder: Path) -> Parts | None:
    """What `store` left, or None where it did not come to its end."""
    if not (folder / "parts.json").exists():
        return None
    kept = read_json(folder / "parts.json")
    return Parts(folder, tuple(kept.pop("files")), **kept)


def store(folder: Path, rows: Iterable[dict[str, Any]], **about: Any) -> Parts:
    """Write PART rows as parts; `about`: the fields of Parts that rows do not tell."""
    private_folder(folder)
    names: list[str] = []
    waiting: list[dict[str, Any]] = []
    total = failed = held = 0

    def flush() -> None:
        name = f"part-{len(names):05d}.parquet"
        write_parquet(folder / name, pl.DataFrame(waiting, schema=PART))
        names.append(name)
        waiting.clear()

    for row in rows:
        waiting.append(row)
        total += 1
        failed += row["text"] is None
        held += len(row["text"] or "") + len(row["prompt"] or "")
        if len(waiting) >= ROWS or held >= _CHARACTERS:
            flush()
            held = 0
    if waiting:
        flush()
    kept = {"files": names, "rows": total, "failed": failed, **about}
    write_json(folder / "parts.json", kept)
    found = finished(folder)
    assert found is not None
    return found


def normalised(rows: Iterable[Any], columns: Columns, source: str) -> Iterator[dict[str, Any]]:
    """PART rows of a foreign file's rows, one for each text. source: the name of rows that do not have one."""
    seen: dict[tuple[str, str, int], int] = {}
    for number, row in enumerate(rows, start=1):
        prompt, _ = _unicode(columns.prompt(row))
        key = prompt_key(prompt)
        name = name_in(columns.value("prompt_id", row))
        prompt_id = name if name is not None else f"p-{key}" if key is not None else f"row-{number:07d}"
        owner = name_in(columns.value("source", row)) or source
        run = whole_in(columns.value("run", row)) or 0
        given = whole_in(columns.value("continuation", row))
        said = columns.value("error", row)
        value = columns.value("text", row)
        texts = texts_in(value)
        for text in texts or [None]:
            place = (_storable(owner), _storable(prompt_id), run)
            index = given if given is not None and len(texts) == 1 else seen.get(place, 0)
            seen[place] = seen.get(place, 0) + 1
            text, error = _unicode(text)
            if text is not None and not text.strip() and said and isinstance(said, (str, Mapping)):
                text = None  # what a program wrote for want of a text
            if text is None and error is None:
                error = str(said)[:300] if said else _missing(value)
            yield {
                "row": number, "source": place[0], "prompt_id": place[1], "prompt_key": key,
                "prompt": prompt, "text": text, "error": error and _storable(error), "run": run, "continuation": index,
                "domain": _storable(name_in(columns.value("domain", row)) or NO_DOMAIN),
                "distribution": distribution_in(columns.value("distribution", row)),
            }  # fmt: skip


def _missing(value: Any) -> str:
    if value is None:
        return "no text"
    if isinstance(value, (list, dict)):
        return "no text in the list or object"
    return f"not a text but {type(value).__name__}"


def _unicode(text: str | None) -> tuple[str | None, str | None]:
    """The text, or None and why: half of a surrogate pair, which JSON can spell, is no text and fits no file."""
    if text is None:
        return None, None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return None, f"not Unicode text: holds U+{ord(text[error.start]):04X}, half of a surrogate pair"
    return text, None


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
