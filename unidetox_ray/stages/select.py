"""Corpora of the least toxic texts: the model's own samples (`sgeat`) or real documents (`dapt`), ranked by a scorer.

Sampling, scoring and counting of a shard are one order, made once on the base family. The kept texts are an ordinary
corpus; of all texts, the dropped ones too, the scores stay in `scores.parquet`, without their text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import (
    Manifest,
    finished,
    key_for,
    private_folder,
    write_parquet,
    write_text,
)
from unidetox_ray.cards import corpus_card
from unidetox_ray.core.streams import generator
from unidetox_ray.errors import ConfigError
from unidetox_ray.experiment import MethodEntry, checked
from unidetox_ray.hashing import digest, hashable
from unidetox_ray.methods.filtered import Filtered
from unidetox_ray.methods.sgeat import INSTRUCTIONS
from unidetox_ray.schemas import CORPUS, check
from unidetox_ray.settings import CorpusSection
from unidetox_ray.stages import held
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle
from unidetox_ray.stages.orders import facts_of, fulfil
from unidetox_ray.stages.scorers import filter_scorer, scorer_specs
from unidetox_ray.stages.select_workers import DocumentWorker, SampleWorker
from unidetox_ray.stages.selection import RANKED, rank, refuse_empty
from unidetox_ray.stages.selection import facts_of as selected_facts

#: Settings that change no corpus.
_OF_TRAINING = {"scorer", "training", "epochs", "lr"}
_DOCUMENTS_PER_ORDER = 2048


def run(
    context: Context,
    entry: MethodEntry,
    section: CorpusSection,
    base: Handle,
    scorers: Mapping[str, Handle],
    finish: Callable[..., Manifest],
) -> tuple[Path, Manifest]:
    """(folder with corpus.parquet and scores.parquet, manifest). finish: `stages.corpus.finish`.

    Entries that differ in their training alone share one folder: it is found by method and key.
    """
    started = time.perf_counter()
    spec = spec_of(context, entry, scorers)
    making = (_Samples if section.source == "distil" else _Documents)(context, entry, section, base, spec)
    key = key_for("corpus", making.config, making.inputs)
    folder = private_folder(context.folder.stage(f"corpus-{entry.method}", key))
    manifest = finished(folder, key)
    reused = manifest is not None
    if manifest is None:
        table = making.made(folder)
        facts = {
            "selection": {
                "scorer": spec["name"],
                "keep": making.settings.keep,
                "min_tokens": making.settings.min_tokens,
                "max_repetition": making.settings.max_repetition,
                "rounds": making.rounds,
                **making.facts,
            }
        }
        write_parquet(folder / "scores.parquet", pl.concat(making.scores))
        write_text(folder / "README.md", corpus_card(entry.method, facts["selection"], base=base["name"]))
        manifest = finish(
            folder, check(table, CORPUS, f"corpus {entry.label}"), key, time.perf_counter() - started, making.config, making.inputs,
            expected=making.size, facts=facts,
        )  # fmt: skip
    context.record(
        f"corpus-{entry.label}", key, time.perf_counter() - started, reused=reused, tokens=manifest.extra["tokens"],
        processes=context.experiment.cluster.corpus_actors,
        devices=held.by_actors(context, context.experiment.cluster.corpus_actors),
    )  # fmt: skip
    return folder, manifest


def spec_of(context: Context, entry: MethodEntry, scorers: Mapping[str, Handle]) -> dict[str, Any]:
    """The filtering scorer as plain values (`stages.scorers`)."""
    name = filter_scorer(context.experiment, entry).name
    return next(spec for spec in scorer_specs(context.experiment, dict(scorers)) if spec["name"] == name)


class _Making:
    """One filtered corpus: what it is keyed by, and its rounds of ranking."""

    def __init__(
        self,
        context: Context,
        entry: MethodEntry,
        section: CorpusSection,
        base: Handle,
        spec: dict[str, Any],
    ) -> None:
        self.context, self.label, self.section, self.base, self.spec = (
            context,
            entry.label,
            section,
            base,
            spec,
        )
        self.settings: Filtered = checked(entry)
        model = {"model": spec["model"]["key"]} if "model" in spec else {"words": digest(spec["words"])}
        self.config: dict[str, Any] = {
            "method": entry.method,
            "settings": self.settings.model_dump(mode="json", exclude=_OF_TRAINING),
            "scorer": {name: value for name, value in spec.items() if name not in ("model", "words")} | model,
        }
        self.inputs: dict[str, str] = {"base": base["key"]}
        self.rounds: list[dict[str, Any]] = []
        self.scores: list[pl.DataFrame] = []
        self.facts: dict[str, Any] = {}
        self.size = section.num_texts

    def made(self, folder: Path) -> pl.DataFrame:
        raise NotImplementedError

    def ranked(
        self, worker: Any, folder: Path, settings: dict[str, Any], origin: int, count: int, size: int
    ) -> pl.DataFrame:
        """The kept ones of a round: texts `origin` to `origin + count`, `size` an order."""
        cluster = self.context.experiment.cluster
        number = len(self.rounds) + 1
        orders = [
            {"id": f"round{number}-shard-{shard:05d}", "shard": shard, "origin": origin, "first": first, "rows": min(size, origin + count - first)}
            for shard, first in enumerate(range(origin, origin + count, size))
        ]  # fmt: skip
        common = {"scorer": self.spec, "threads": cluster.threads, "token_budget": cluster.score_tokens}
        with self.context.display.task(f"corpus {self.label}", "texts") as advance:
            pool = fulfil(
                worker, {**common, **settings}, orders, folder,
                actors=cluster.corpus_actors, context=self.context, progress=advance,
            )  # fmt: skip
        for kept in facts_of(folder, orders).values():
            for name, seconds in kept.items():
                self.facts[name] = round(self.facts.get(name, 0.0) + seconds, 3)
        table = rank(pool.sort("text_id"), self.settings)
        facts = selected_facts(table, self.settings)
        self.rounds.append(facts)
        self.scores.append(table.select(pl.lit(number, pl.Int64).alias("round"), *RANKED, "reason"))
        refuse_empty(table, facts, f"corpus {self.label}")
        if facts["kept"] < facts["wanted"]:
            self.context.display.say(
                f"corpus {self.label}: {facts['kept']} of {facts['wanted']} texts passed the checks of length and repetition"
            )
        return table.filter(pl.col("reason").is_null())


class _Samples(_Making):
    """The base model's own texts, `oversample` for one, in one round or two."""

    settings: Any

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        section, settings = self.section, self.settings
        self.config["section"] = hashable(section) | {
            "beta": str(section.beta),
            "shard_size": section.shard_size,
        }
        if settings.prompts == "augmented" and settings.prompt_tokens > section.max_length - 2:
            raise ConfigError(
                f"methods.{self.label}: prompt_tokens = {settings.prompt_tokens} leaves no room for new ones in texts of "
                f"corpus.max_length = {section.max_length}"
            )

    def made(self, folder: Path) -> pl.DataFrame:
        from unidetox_ray.families.loading import encode, load_tokenizer

        section, settings = self.section, self.settings
        pool = math.ceil(Fraction(str(settings.oversample)) * section.num_texts)
        first: list[list[int]] = [[]]
        if settings.prompts == "heuristic":
            tokenizer = load_tokenizer(self.base["path"], revision=self.base.get("revision"))
            first = [encode(tokenizer, text, bos="never") for text in INSTRUCTIONS]
        kept = self._round(folder, first, 0, pool, carry=False)
        if settings.prompts == "augmented":
            prompts = [ids[: settings.prompt_tokens] for ids in kept.sort("text_id")["token_ids"].to_list()]
            kept = self._round(folder, prompts, pool, pool, carry=True)
        self.facts |= {"prompts": settings.prompts, "oversample": settings.oversample}
        self.size = kept.height
        order = generator("select", section.seed).permutation(kept.height)
        return kept.sort("text_id")[order.tolist()]

    def _round(
        self, folder: Path, prompts: list[list[int]], origin: int, count: int, *, carry: bool
    ) -> pl.DataFrame:
        values = {"section": {**self.section.model_dump(mode="json"), "beta": self.section.beta}, "method": self.config["method"], "models": [self.base]}  # fmt: skip
        return self.ranked(
            SampleWorker,
            folder,
            values | {"prompts": prompts, "carry": carry},
            origin,
            count,
            self.section.shard_size,
        )


class _Documents(_Making):
    """Real documents, and the kept ones composed to texts of the corpus's size."""

    settings: Any

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        from unidetox_ray.methods.clean_text import CLEAN
        from unidetox_ray.stages.texts import source_of

        section, data = self.section, self.context.experiment.data
        self.source = source_of(self.context, section)
        limit = self.context.experiment.limit
        # A smoke run scores no more documents than its texts need.
        self.texts = self.source.texts[: None if limit is None else math.ceil(limit / self.settings.keep)]
        self.config |= {
            "num_texts": section.num_texts, "max_length": section.max_length, "seed": section.seed, "limit": limit,
            "source": CLEAN if section.source == CLEAN else Path(section.source).name,
        }  # fmt: skip
        self.config["settings"].pop("source", None)
        self.inputs["texts"] = self.source.sha256
        if data.clean is not None:
            self.inputs["held_out"] = self.context.data("clean", data.clean).sha256

    def made(self, folder: Path) -> pl.DataFrame:
        from unidetox_ray.families.loading import load_tokenizer
        from unidetox_ray.stages.texts import composed

        documents = private_folder(folder / "parts") / "documents.parquet"
        write_parquet(documents, pl.DataFrame({"text": list(self.texts)}))
        values = {"documents": str(documents), "base": self.base}
        kept = self.ranked(DocumentWorker, folder, values, 0, len(self.texts), _DOCUMENTS_PER_ORDER)
        tokenizer = load_tokenizer(self.base["path"], revision=self.base.get("revision"))
        texts = [self.texts[index] for index in kept["text_id"]]
        table, passes = composed(texts, tokenizer, self.section, fill=self.settings.fill)
        self.facts |= {"documents": kept.height, "passes": round(passes, 4), "held_out_removed": self.source.held_out_removed}  # fmt: skip
        return table
