"""Stage `corpus`: distilled text by sharded contrastive generation on Ray Data (paper section 3, step 2).

The unit of work is a shard order (shard id, seed, number of sequences) and every sequence has its own random stream, so the
text does not depend on how many actors made it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from unidetox_ray import registry
from unidetox_ray.artifacts import (
    Manifest,
    file_sha256,
    finished,
    key_for,
    private_folder,
    write_manifest,
    write_parquet,
)
from unidetox_ray.errors import DataError, ModelError, StageError
from unidetox_ray.experiment import MethodEntry, checked
from unidetox_ray.hashing import hashable
from unidetox_ray.methods.base import CorpusMethod
from unidetox_ray.schemas import CORPUS, check, frame
from unidetox_ray.settings import CorpusSection
from unidetox_ray.stages import held
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.orders import Done, Lot, clear_parts, fulfil, work_off

if TYPE_CHECKING:
    from unidetox_ray.core.decode import Decoded


class CorpusWorker:
    """Holds the base model, and the toxic one where the method needs it; samples one shard per call."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from unidetox_ray.families.loading import load_model, load_tokenizer, special_ids
        from unidetox_ray.stages.cluster import prepare_process

        self.device = device = prepare_process(settings["threads"])
        self.section = CorpusSection(**settings["section"])
        self.method = registry.lookup("methods", settings["method"])
        self.tokenizer = load_tokenizer(
            settings["models"][0]["path"], revision=settings["models"][0].get("revision")
        )
        dtype = {"fp32": "float32", "bf16": "bfloat16"}[self.section.precision]
        self.models = [
            load_model(m["path"], dtype=dtype, device=device, revision=m.get("revision")).eval()
            for m in settings["models"]
        ]
        self.ids = special_ids(self.tokenizer, self.models[0].config)
        self.names = [str(m.get("name") or m["path"]) for m in settings["models"]]

    def work(self, order: dict[str, Any]) -> pl.DataFrame | Done:
        section = self.section
        identities = list(range(order["first"], order["first"] + order["rows"]))
        sequences = self.decoded(identities, [[self.ids.start]] * len(identities), section.max_length - 1)
        rows = [
            {
                "text_id": identity, "shard_id": order["shard"], "seed": section.seed, "n_tokens": len(sequence.ids), "token_ids": sequence.ids,
                "text": self.text_of(sequence.ids), "ended": sequence.ended,
            }
            for identity, sequence in zip(identities, sequences, strict=True)
        ]  # fmt: skip
        return frame(rows, CORPUS)

    def decoded(self, identities: list[int], prompts: list[list[int]], new: int) -> list[Decoded]:
        """At most `new` tokens behind each prompt (token ids, the start token first); each text's own random numbers."""
        from unidetox_ray.core.decode import decode
        from unidetox_ray.core.logits import Sampling
        from unidetox_ray.core.shared_cache import decode_shared_cache
        from unidetox_ray.core.streams import uniforms
        from unidetox_ray.families.runners import runner_of

        section = self.section
        how: dict[str, Any] = {
            "uniform": uniforms(section.seed, identities, new), "max_new_tokens": new,
            "end_ids": [] if self.ids.eos is None else [self.ids.eos], "pad_id": self.ids.pad,
            "mixture": self.method.mixture(section),
            "sampling": Sampling(section.temperature, section.top_k, section.top_p),
        }  # fmt: skip
        if section.kv_cache == "shared":
            found = decode_shared_cache(self.models, prompts, **how)
        else:
            found = decode([runner_of(model) for model in self.models], prompts, **how)
        if any(sequence.broken for sequence in found):
            names = " or ".join(self.names)
            raise ModelError(
                f"{names}: the scores are not finite; the model has diverged (train it with a lower lr) or overflows "
                f"(corpus.precision is {section.precision})"
            )
        return found

    def text_of(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def corpus_section(context: Context, entry: MethodEntry) -> CorpusSection:
    """The corpus settings that hold for one method entry, limit included."""
    method = registry.lookup("methods", entry.method)
    section: CorpusSection = method.recipe(checked(entry), context.experiment.corpus)
    if context.experiment.limit is not None:
        section = section.model_copy(update={"num_texts": min(section.num_texts, context.experiment.limit)})
    return section


@dataclass(frozen=True)
class _Sampled:
    """What makes a corpus that is decoded here."""

    lot: Lot
    key: str
    config: dict[str, Any]
    inputs: dict[str, str]


def _sampled(context: Context, entry: MethodEntry, base: Handle, toxic: Handle | None) -> _Sampled | None:
    """None for a corpus that is not decoded here. StageError where the toxic model is needed and missing."""
    section = corpus_section(context, entry)
    method: CorpusMethod = registry.lookup("methods", entry.method)
    if method.source != "sample" or section.source != "distil":
        return None
    contrasted = "toxic" in method.needed_for(checked(entry))
    models = [base] + ([toxic] if contrasted and toxic is not None else [])
    if contrasted and toxic is None:
        raise StageError(f"corpus: {entry.label} needs the toxic model, which was not made")
    config = {
        "method": entry.method,
        "section": hashable(section) | {"beta": str(section.beta), "shard_size": section.shard_size},
    }
    inputs = {"base": base["key"]} | ({"toxic": toxic["key"]} if contrasted and toxic else {})
    key = key_for("corpus", config, inputs)
    orders = [
        {
            "id": f"shard-{shard:05d}",
            "shard": shard,
            "first": first,
            "rows": min(section.shard_size, section.num_texts - first),
        }
        for shard, first in enumerate(range(0, section.num_texts, section.shard_size))
    ]
    settings = {
        "section": {**section.model_dump(mode="json"), "beta": section.beta},
        "method": entry.method,
        "models": models,
        "threads": context.experiment.cluster.threads,
    }
    folder = private_folder(context.folder.stage(f"corpus-{entry.label}", key))
    return _Sampled(Lot(CorpusWorker, settings, orders, folder), key, config, inputs)


def sample_together(
    context: Context, entries: Sequence[MethodEntry], base: Handle, toxic: Handle | None
) -> dict[str, float]:
    """The parts of all corpora that are decoded here and not finished, on one pool of actors: `run` then finds them made.

    Returns each label's share of the seconds, by the time that the actors spent on it; empty where a pool of its own
    does as well, there being no second corpus.
    """
    started = time.perf_counter()
    found = {entry.label: _sampled(context, entry, base, toxic) for entry in entries}
    lots = {
        label: each.lot
        for label, each in found.items()
        if each is not None and finished(each.lot.folder, each.key) is None and each.lot.missing
    }
    if len(lots) < 2:
        return {}
    with context.display.task(f"corpora {', '.join(lots)}", "texts") as advance:
        spent = work_off(
            list(lots.values()),
            actors=context.experiment.cluster.corpus_actors, context=context, progress=advance,
        )  # fmt: skip
    share = (time.perf_counter() - started) / max(sum(spent), 1e-9)  # none where every order's actor died
    return {label: share * seconds for label, seconds in zip(lots, spent, strict=True)}


def run(
    context: Context,
    entry: MethodEntry,
    base: Handle,
    toxic: Handle | None,
    scorers: Mapping[str, Handle] | None = None,
    spent: float = 0.0,
) -> tuple[Path, Manifest]:
    """(folder with corpus.parquet, manifest) of one corpus method.

    scorers: opened by methods whose corpus is filtered. spent: seconds that its parts have already cost.
    """
    started = time.perf_counter() - spent
    section = corpus_section(context, entry)
    source = registry.lookup("methods", entry.method).source
    if source == "text":
        from unidetox_ray.stages import texts

        return texts.run(context, entry, section, base, finish)
    if source == "select":
        from unidetox_ray.stages import select

        return select.run(context, entry, section, base, scorers or {}, finish)
    sampled = _sampled(context, entry, base, toxic)
    if sampled is None:
        return _from_file(context, entry, section, started)
    folder, key = sampled.lot.folder, sampled.key
    manifest = finished(folder, key)
    reused = manifest is not None
    # Orders that this run made in the pool of all corpora are its own work.
    partial = not reused and not spent and len(sampled.lot.missing) < len(sampled.lot.orders)
    if manifest is None:
        with context.display.task(f"corpus {entry.label}", "texts") as advance:
            table = fulfil(
                CorpusWorker, sampled.lot.settings, sampled.lot.orders, folder,
                actors=context.experiment.cluster.corpus_actors, context=context, progress=advance,
            )  # fmt: skip
        table = check(table.sort("text_id"), CORPUS, f"corpus {entry.label}")
        manifest = finish(
            folder, table, key, time.perf_counter() - started, sampled.config, sampled.inputs, expected=section.num_texts
        )  # fmt: skip
    context.record(
        f"corpus-{entry.label}", key, time.perf_counter() - started, reused=reused, tokens=manifest.extra["tokens"],
        processes=context.experiment.cluster.corpus_actors,
        devices=held.by_actors(context, context.experiment.cluster.corpus_actors, len(sampled.lot.orders)), partial=partial,
    )  # fmt: skip
    return folder, manifest


def _from_file(
    context: Context, entry: MethodEntry, section: CorpusSection, started: float
) -> tuple[Path, Manifest]:
    from unidetox_ray.data.base import resolve
    from unidetox_ray.data.text import load_corpus

    path = resolve(section.source, context.experiment.data.data_root)
    assert path is not None
    config = {
        "method": entry.method,
        "source": path.name,
        "num_texts": section.num_texts,
        "limit": context.experiment.limit,
    }
    inputs = {"file": file_sha256(path)}
    key = key_for("corpus", config, inputs)
    folder = private_folder(context.folder.stage(f"corpus-{entry.label}", key))
    manifest = finished(folder, key)
    reused = manifest is not None
    if manifest is None:
        loaded = load_corpus(path)
        loaded = loaded.head(section.num_texts)
        if loaded.height == 0:
            raise DataError(f"{path}: holds no text; give a corpus with a `text` or `Text` column")
        table = loaded.with_row_index("text_id").with_columns(
            pl.col("text_id").cast(pl.Int64), shard_id=pl.lit(0, pl.Int64), seed=pl.lit(0, pl.Int64),
            token_ids=pl.lit(None, pl.List(pl.Int64)), n_tokens=pl.lit(None, pl.Int64),
            ended=pl.col("ended").cast(pl.Boolean) if "ended" in loaded.columns else pl.lit(None, pl.Boolean),
        )  # fmt: skip
        manifest = finish(
            folder,
            check(table, CORPUS, str(path)),
            key,
            time.perf_counter() - started,
            config,
            inputs,
            expected=loaded.height,
        )
    context.record(f"corpus-{entry.label}", key, time.perf_counter() - started, reused=reused)
    return folder, manifest


def finish(
    folder: Path,
    table: pl.DataFrame,
    key: str,
    seconds: float,
    config: dict[str, Any],
    inputs: dict[str, str],
    *,
    expected: int,
    facts: Mapping[str, Any] | None = None,
) -> Manifest:
    """corpus.parquet and its manifest. facts: more for the manifest."""
    if table.height != expected:
        raise StageError(f"{folder.name}: {table.height} texts, expected {expected}")
    write_parquet(folder / "corpus.parquet", table)
    clear_parts(folder)
    tokens = int(table["n_tokens"].sum() or 0)
    return write_manifest(
        folder, stage="corpus", key=key, seconds=seconds, config=config, inputs=inputs,
        counts={"expected": expected, "ok": table.height, "failed": 0},
        extra={"tokens": tokens, "ended": int(table["ended"].sum() or 0), "sha256": file_sha256(folder / "corpus.parquet"), **(facts or {})},
    )  # fmt: skip
