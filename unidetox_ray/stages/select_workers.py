"""Workers of filtered corpora: what samples and scores a shard, and what scores a stretch of documents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import polars as pl

from unidetox_ray.schemas import CORPUS, frame
from unidetox_ray.stages.corpus import CorpusWorker
from unidetox_ray.stages.orders import Done
from unidetox_ray.stages.scorers import open_scorer
from unidetox_ray.stages.selection import BLANK, RANKED, repetition

#: A sampled text, ranked or not.
_POOL: dict[str, Any] = {**CORPUS, **RANKED}


def judged(scorer: Any, texts: Sequence[str], token_budget: int) -> list[tuple[float | None, str | None]]:
    """(score, error) of each text; a blank one is not asked about."""
    asked = [index for index, text in enumerate(texts) if text.strip()]
    values = scorer.score([texts[index] for index in asked], token_budget=token_budget)
    found = dict(zip(asked, zip(values, scorer.errors, strict=True), strict=True))
    return [found.get(index, (None, BLANK)) for index in range(len(texts))]


class SampleWorker(CorpusWorker):
    """Samples one shard per call and scores it. settings: CorpusWorker's, `scorer`, `token_budget`, and `prompts`, the
    token ids of each, the start token left out; `carry`: a text begins with its prompt."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.scorer = open_scorer(settings["scorer"], self.device)
        self.budget = int(settings["token_budget"])
        self.prompts: list[list[int]] = settings["prompts"]
        self.carry = bool(settings["carry"])

    def work(self, order: dict[str, Any]) -> Done:
        started = time.perf_counter()
        identities = range(order["first"], order["first"] + order["rows"])
        prompts = [self.prompts[(identity - order["origin"]) % len(self.prompts)] for identity in identities]
        new = self.section.max_length - 1 - (len(prompts[0]) if self.carry else 0)
        sequences = self.decoded(list(identities), [[self.ids.start, *ids] for ids in prompts], new)
        rows: list[dict[str, Any]] = []
        for identity, prompt, sequence in zip(identities, prompts, sequences, strict=True):
            ids = [*prompt, *sequence.ids] if self.carry else sequence.ids
            rows.append(
                {
                    "text_id": identity, "shard_id": order["shard"], "seed": self.section.seed, "text": self._text(prompt, ids),
                    "token_ids": ids, "n_tokens": len(ids), "ended": sequence.ended, "repetition": repetition(ids),
                }
            )  # fmt: skip
        sampled = time.perf_counter()
        for row, (score, error) in zip(
            rows, judged(self.scorer, [row["text"] for row in rows], self.budget), strict=True
        ):
            row |= {"score": score, "error": error}
        seconds = {"sample_seconds": sampled - started, "score_seconds": time.perf_counter() - sampled}
        return Done(frame(rows, _POOL), seconds)

    def _text(self, prompt: list[int], ids: list[int]) -> str:
        """What the ids say behind the prompt, or from its beginning where they hold it."""
        from unidetox_ray.stages.continuations import continuation_text

        if self.carry or not prompt:
            return self.text_of(ids)
        return continuation_text(self.tokenizer, "", prompt, ids, "tokens")


class DocumentWorker:
    """Scores a stretch of the documents in `settings["documents"]`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from unidetox_ray.families.loading import load_tokenizer
        from unidetox_ray.stages.cluster import prepare_process

        self.scorer = open_scorer(settings["scorer"], prepare_process(settings["threads"]))
        self.budget = int(settings["token_budget"])
        self.tokenizer = load_tokenizer(settings["base"]["path"], revision=settings["base"].get("revision"))
        self.documents = pl.read_parquet(settings["documents"])

    def work(self, order: dict[str, Any]) -> Done:
        started = time.perf_counter()
        texts = self.documents["text"].slice(order["first"], order["rows"]).to_list()
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        rows = [
            {"text_id": order["first"] + index, "n_tokens": len(ids), "repetition": repetition(ids), "score": score, "error": error}
            for index, (ids, (score, error)) in enumerate(zip(encoded, judged(self.scorer, texts, self.budget), strict=True))
        ]  # fmt: skip
        return Done(frame(rows, RANKED), {"score_seconds": time.perf_counter() - started})
