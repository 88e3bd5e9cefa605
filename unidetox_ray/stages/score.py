"""Stage `score`: judgements of every continuation, and each cell's own measurements, sharded on Ray Data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import Manifest, finished, key_for, private_folder, write_manifest, write_parquet
from unidetox_ray.errors import StageError
from unidetox_ray.schemas import SCORES, check, frame
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages import held
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle, handle_of
from unidetox_ray.stages.orders import clear_parts, fulfil
from unidetox_ray.stages.scorers import open_scorer, scorer_specs
from unidetox_ray.stages.unjudged import halves, unjudged

_ROWS_PER_ORDER = 8192


class ScoreWorker:
    """Scorers and the perplexity judge are loaded once per actor, on first need; a cell's own model once per cell."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from unidetox_ray.stages.cluster import prepare_process
        from unidetox_ray.stages.opening import OpenModel

        self.settings = settings
        self.device = prepare_process(settings["threads"])
        self.evaluate = EvaluateSection(**settings["evaluate"])
        self.generations = pl.read_parquet(settings["generations"], memory_map=True)
        self.prompts = dict(pl.read_parquet(settings["prompts"]).select("prompt_id", "prompt").iter_rows())
        self.scorers: dict[str, Any] = {}
        self.judge = OpenModel(self.device, self.evaluate.ppl_precision)
        self.own = OpenModel(self.device, self.evaluate.precision)

    split = staticmethod(halves)
    failed = staticmethod(unjudged)

    def work(self, order: dict[str, Any]) -> pl.DataFrame:
        rows = self._continuations(order) if order["what"] == "continuations" else self._own(order)
        return frame(rows, SCORES)

    def _continuations(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        table = self.generations.slice(order["first"], order["count"])
        rows: list[dict[str, Any]] = []
        texts = table["text"].to_list()
        places = [
            {"cell": cell, "prompt_id": prompt, "run": run, "sample": sample}
            for cell, prompt, run, sample in table.select("cell", "prompt_id", "run", "sample").iter_rows()
        ]
        upstream = table["error"].to_list()
        usable = [index for index, text in enumerate(texts) if text is not None]
        for spec in self.settings["scorers"]:
            values, errors = self._toxicity(spec, [texts[index] for index in usable])
            found = dict(zip(usable, zip(values, errors, strict=True), strict=True))
            for index, place in enumerate(places):
                value, error = found.get(index, (None, f"not generated: {upstream[index]}"))
                rows.append(
                    {
                        **place,
                        "metric": "toxicity",
                        "scorer": spec["name"],
                        "value": value,
                        "weight": 1.0,
                        "error": error,
                    }
                )
        if self.settings["judge"] is not None:
            rows += self._perplexity(places, texts, usable, upstream)
        return rows

    def _toxicity(
        self, spec: dict[str, Any], texts: list[str]
    ) -> tuple[list[float | None], list[str | None]]:
        if spec["name"] not in self.scorers:
            self.scorers[spec["name"]] = open_scorer(spec, self.device)
        values = self.scorers[spec["name"]].score(texts, token_budget=self.settings["token_budget"])
        return values, self.scorers[spec["name"]].errors

    def _perplexity(
        self,
        places: list[dict[str, Any]],
        texts: list[str | None],
        usable: list[int],
        upstream: list[str | None],
    ) -> list[dict[str, Any]]:
        from unidetox_ray.metrics.perplexity import continuation_nll

        model, tokenizer = self.judge.open(self.settings["judge"])
        nll, counts, errors = continuation_nll(
            model, tokenizer,
            [self.prompts[places[index]["prompt_id"]] for index in usable], [str(texts[index]) for index in usable],
            bos=True, encoding=self.evaluate.ppl_encoding, prompt_cache=self.evaluate.ppl_prompt_cache, token_budget=self.settings["token_budget"],
        )  # fmt: skip
        found = {index: (nll[i], counts[i], errors[i]) for i, index in enumerate(usable)}
        name = self.settings["judge"]["name"]
        rows = []
        for index, place in enumerate(places):
            value, weight, error = found.get(index, (None, 0, f"not generated: {upstream[index]}"))
            rows.append(
                {
                    **place,
                    "metric": "ppl",
                    "scorer": name,
                    "value": value,
                    "weight": float(weight or 0),
                    "error": error,
                }
            )
        return rows

    def _own(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        model, tokenizer = self.own.open(order["model"])
        clean, quiz = (
            None if self.settings[name] is None else pl.read_parquet(self.settings[name])
            for name in ("clean", "quiz")
        )
        return own_rows(
            order["cell"], model, tokenizer, clean, quiz, self.evaluate, self.settings["token_budget"]
        )


def own_rows(
    cell: str,
    model: Any,
    tokenizer: Any,
    clean: pl.DataFrame | None,
    quiz: pl.DataFrame | None,
    evaluate: EvaluateSection,
    token_budget: int,
) -> list[dict[str, Any]]:
    """Rows of schemas.SCORES that a cell's own model gives: clean perplexity and the quiz, where there is a table."""
    from unidetox_ray.families.loading import adds_bos
    from unidetox_ray.metrics.mmlu import quiz_answers
    from unidetox_ray.metrics.perplexity import judge_texts

    place = {"cell": cell, "run": 0, "sample": 0, "scorer": "self"}
    rows: list[dict[str, Any]] = []
    if clean is not None:
        judged = judge_texts(
            model, tokenizer, clean["text"].to_list(), bos=True,
            token_budget=token_budget, max_length=evaluate.clean_max_length,
        )  # fmt: skip
        for text_id, value, count, error in zip(clean["text_id"].to_list(), *judged, strict=True):
            rows.append(
                {
                    **place,
                    "metric": "clean_ppl",
                    "prompt_id": text_id,
                    "value": value,
                    "weight": float(count),
                    "error": error,
                }
            )
    if quiz is not None:
        mmlu = evaluate.mmlu
        answers = quiz_answers(
            model, tokenizer, quiz, shots=mmlu.shots, form=mmlu.form, score=mmlu.score, loss_dtype=mmlu.loss_dtype,
            normalise=mmlu.normalise, bos=adds_bos(tokenizer), token_budget=token_budget,
        )  # fmt: skip
        for question_id, value, error in zip(
            answers.question_ids, answers.correct, answers.error, strict=True
        ):
            rows.append(
                {
                    **place,
                    "metric": "mmlu",
                    "prompt_id": question_id,
                    "value": value,
                    "weight": 1.0,
                    "error": error,
                }
            )
    return rows


def own_tables(context: Context) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
    """(clean texts, quiz) that a cell's own model is measured on; None where the experiment names no data."""
    data = context.experiment.data
    clean = quiz = None
    if data.clean is not None:
        table = context.data("clean", data.clean).table
        held_out = table.filter(pl.col("split") == "test")
        clean = context.limited(held_out if held_out.height else table)
    if data.mmlu is not None:
        table = context.data("mmlu", data.mmlu).table
        asked = context.limited(table.filter(pl.col("split") == "validation"), by="subject")
        quiz = pl.concat([table.filter(pl.col("split") == "dev"), asked])
    return clean, quiz


def judge_handle(context: Context, bases: dict[str, Handle]) -> Handle | None:
    """The perplexity judge: a family's base model, else a hub id or folder."""
    name = context.experiment.evaluate.ppl_model
    if name is None:
        return None
    if name in bases:
        return {**bases[name], "name": bases[name]["name"]}
    from unidetox_ray import registry
    from unidetox_ray.settings import ModelRef

    if name in registry.FAMILIES:
        return handle_of(context.experiment.model_of(name), name)
    return handle_of(ModelRef(source=name), name)


def run(
    context: Context,
    cells: Sequence[Cell],
    generated: tuple[Path, Manifest],
    bases: dict[str, Handle],
    scorers: dict[str, Handle],
) -> tuple[Path, Manifest]:
    """(folder with scores.parquet, manifest)."""
    started = time.perf_counter()
    experiment, evaluate = context.experiment, context.experiment.evaluate
    folder_in, manifest_in = generated
    alive = [cell for cell in cells if cell.model is not None]
    specs = scorer_specs(experiment, scorers)
    judge = judge_handle(context, bases)
    clean, quiz = own_tables(context)
    # By content: the same orders give other rows once a model that could not be opened can be.
    inputs = {"generations": manifest_in.files["generations.parquet"]}
    for role, source in (("clean", experiment.data.clean), ("mmlu", experiment.data.mmlu)):
        if source is not None:
            inputs[role] = context.data(role, source).sha256
    config = {
        "evaluate": evaluate.model_dump(
            mode="json", exclude={"bootstrap", "threshold", "group_by", "ppl_drop_at", "max_failed_share"}
        ),
        "scorers": [{**spec, "model": spec["model"]["key"]} if "model" in spec else spec for spec in specs],
        "judge": judge["key"] if judge else None,
        "limit": experiment.limit,
    }
    key = key_for("score", config, inputs)
    folder = private_folder(context.folder.stage("score", key))
    manifest = finished(folder, key)
    reused = manifest is not None
    partial = any((folder / "parts").glob("*.parquet"))
    if manifest is None:
        for name, table in (("clean", clean), ("quiz", quiz)):
            if table is not None:
                write_parquet(folder / f"{name}.parquet", table)
        total = sum(manifest_in.counts.values()) - manifest_in.counts["expected"]
        kinds = len(specs) + (judge is not None)
        own_rows = (clean.height if clean is not None else 0) + (
            quiz.filter(pl.col("split") == "validation").height if quiz is not None else 0
        )
        # "last_seen" remembers from row to row, as released, so that a cell must be judged in one piece.
        size = total // len(alive) if evaluate.ppl_prompt_cache == "last_seen" else _ROWS_PER_ORDER
        orders: list[dict[str, Any]] = [
            {"id": f"continuations-{first:09d}", "what": "continuations", "first": first, "count": min(size, total - first),
             "rows": min(size, total - first) * kinds}
            for first in range(0, total, size)
        ]  # fmt: skip
        if own_rows:
            orders += [
                {
                    "id": f"own-{cell.name}",
                    "what": "own",
                    "cell": cell.name,
                    "model": cell.model,
                    "rows": own_rows,
                }
                for cell in alive
            ]
        settings = {
            "evaluate": evaluate.model_dump(mode="json"), "generations": str(folder_in / "generations.parquet"), "prompts": str(folder_in / "prompts.parquet"),
            "scorers": specs, "judge": judge, "threads": experiment.cluster.threads, "token_budget": experiment.cluster.score_tokens,
            "clean": str(folder / "clean.parquet") if clean is not None else None, "quiz": str(folder / "quiz.parquet") if quiz is not None else None,
        }  # fmt: skip
        with context.display.task("scoring", "judgements") as advance:
            table = fulfil(
                ScoreWorker,
                settings,
                orders,
                folder,
                actors=experiment.cluster.score_actors,
                context=context,
                progress=advance,
            )
        expected = sum(int(order["rows"]) for order in orders)
        failed = table["value"].null_count()
        if table.height != expected:
            raise StageError(f"score: {table.height} judgements, expected {expected}")
        write_parquet(folder / "scores.parquet", check(table, SCORES, "scores"))
        clear_parts(folder)
        manifest = write_manifest(
            folder, stage="score", key=key, seconds=time.perf_counter() - started, config=config, inputs=inputs,
            counts={"expected": expected, "ok": expected - failed, "failed": failed},
        )  # fmt: skip
    context.record(
        "score", key, time.perf_counter() - started, reused=reused, processes=experiment.cluster.score_actors,
        devices=held.by_actors(context, experiment.cluster.score_actors), partial=partial,
    )  # fmt: skip
    return folder, manifest
