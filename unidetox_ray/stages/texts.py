"""Corpora of real text: as many texts of as many tokens as the experiment's corpus section asks for, nothing sampled.

The held-out texts that `clean_ppl` measures never get in, whatever the source; texts left out for that are counted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import Manifest, finished, key_for, private_folder
from unidetox_ray.errors import DataError
from unidetox_ray.experiment import MethodEntry, checked
from unidetox_ray.methods.clean_text import CLEAN
from unidetox_ray.schemas import CORPUS, check, frame
from unidetox_ray.settings import CorpusSection
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle

#: Between documents that share a text.
_GAP = "\n\n"


@dataclass(frozen=True)
class Source:
    """texts: in file order, held-out ones left out. sha256: of the data."""

    texts: Sequence[str]
    sha256: str
    held_out_removed: int


def run(
    context: Context,
    entry: MethodEntry,
    section: CorpusSection,
    base: Handle,
    finish: Callable[..., Manifest],
) -> tuple[Path, Manifest]:
    """(folder with corpus.parquet, manifest). Tokens are the base family's. finish: `stages.corpus.finish`."""
    started = time.perf_counter()
    fill = checked(entry).fill
    source = source_of(context, section)
    config = {
        "method": entry.method, "fill": fill, "num_texts": section.num_texts, "max_length": section.max_length, "seed": section.seed,
        "source": CLEAN if section.source == CLEAN else Path(section.source).name,
    }  # fmt: skip
    inputs = {"texts": source.sha256, "tokenizer": base["key"]}
    if context.experiment.data.clean is not None:
        inputs["held_out"] = context.data("clean", context.experiment.data.clean).sha256
    key = key_for("corpus", config, inputs)
    folder = private_folder(context.folder.stage(f"corpus-{entry.label}", key))
    manifest = finished(folder, key)
    reused = manifest is not None
    if manifest is None:
        from unidetox_ray.families.loading import load_tokenizer

        tokenizer = load_tokenizer(base["path"], revision=base.get("revision"))
        table, passes = composed(source.texts, tokenizer, section, fill=fill)
        manifest = finish(
            folder, check(table, CORPUS, f"corpus {entry.label}"), key, time.perf_counter() - started, config, inputs,
            expected=section.num_texts,
            facts={"passes": round(passes, 4), "documents": len(source.texts), "held_out_removed": source.held_out_removed},
        )  # fmt: skip
    context.record(
        f"corpus-{entry.label}",
        key,
        time.perf_counter() - started,
        reused=reused,
        tokens=manifest.extra["tokens"],
    )
    return folder, manifest


def source_of(context: Context, section: CorpusSection) -> Source:
    """The texts that may be used. DataError: no file there, or no text left."""
    data = context.experiment.data
    clean = None if data.clean is None else context.data("clean", data.clean)
    held_out = set() if clean is None else set(clean.table.filter(pl.col("split") == "test")["text"])
    if section.source == CLEAN:
        loaded = context.data("clean", data.clean)
        texts, where = (
            loaded.table.filter(pl.col("split") == "train")["text"].to_list(),
            "data.clean (split train)",
        )
        sha256 = loaded.sha256
    else:
        from unidetox_ray.data.base import load

        given = load(
            "clean",
            dataset="text",
            path=section.source,
            options={"test_share": 0.0},
            data_root=data.data_root,
        )
        texts, where, sha256 = given.table["text"].to_list(), section.source, given.sha256
    kept = [text for text in texts if text not in held_out and text.strip()]
    if not kept:
        raise DataError(f"{where}: holds no text that is not held out for clean_ppl; name another source")
    return Source(kept, sha256, sum(text in held_out for text in texts))


def composed(
    texts: Sequence[str], tokenizer: Any, section: CorpusSection, *, fill: str
) -> tuple[pl.DataFrame, float]:
    """(rows of schemas.CORPUS, how often the documents were gone through).

    Documents come in an order drawn from `section.seed`; when all are used up they come again in another order, so that a
    small source gives a corpus of the size asked for. A text has at most max_length - 1 tokens, its start token apart.
    """
    room = section.max_length - 1
    order = _endless(texts, random.Random(f"{section.seed}/clean-text"))
    rows, used = [], 0
    for identity in range(section.num_texts):
        text, ids = "", []
        while True:
            document = next(order)
            used += 1
            text = document if not text else text + _GAP + document
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if fill == "documents" or len(ids) >= room:
                break
        cut = len(ids) > room
        if cut:
            ids = ids[:room]
            text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows.append(
            {"text_id": identity, "shard_id": 0, "seed": section.seed, "n_tokens": len(ids), "token_ids": ids, "text": text, "ended": not cut}
        )  # fmt: skip
    return frame(rows, CORPUS), used / len(texts)


def _endless(texts: Sequence[str], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(texts, len(texts))
