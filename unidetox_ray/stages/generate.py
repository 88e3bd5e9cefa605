"""Stage `generate`: continuations of the evaluation prompts by every cell, sharded on Ray Data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.artifacts import (
    MANIFEST,
    Manifest,
    finished,
    key_for,
    private_folder,
    write_manifest,
    write_parquet,
)
from unidetox_ray.errors import ModelError, StageError
from unidetox_ray.schemas import GENERATIONS, check, frame
from unidetox_ray.settings import EvaluateSection
from unidetox_ray.stages import held
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.opening import OpenModel, weight_bytes
from unidetox_ray.stages.orders import Done, clear_parts, facts_of, fulfil
from unidetox_ray.stages.recovery import halved

#: Fields of `evaluate` that shape the text, and nothing that only shapes its judgement.
TEXT_FIELDS = {
    "split", "continuations", "max_new_tokens", "temperature", "top_p", "top_k", "runs", "seed", "prompt_bos", "prefix_cut", "precision",
}  # fmt: skip

_NOT_OPENED = "model not opened: "


class GenerateWorker:
    def __init__(self, settings: dict[str, Any]) -> None:
        from unidetox_ray.stages.cluster import prepare_process

        device = prepare_process(settings["threads"])
        self.evaluate = EvaluateSection(**settings["evaluate"])
        self.decode_rows = settings["decode_rows"]
        self.prompts = pl.read_parquet(settings["prompts"])
        self.open = OpenModel(device, self.evaluate.precision)

    def work(self, order: dict[str, Any]) -> Done:
        from safetensors import SafetensorError

        from unidetox_ray.stages.continuations import continuations

        chosen = self.prompts.slice(order["first"], order["prompts"])
        try:
            model, tokenizer = self.open.open(order["model"])
        except (ModelError, SafetensorError) as error:
            return Done(self._not_opened(order, chosen["prompt_id"].to_list(), str(error)))
        pairs = list(zip(chosen["prompt_id"].to_list(), chosen["prompt"].to_list(), strict=True))
        seconds: list[float] = []
        rows = continuations(
            model,
            tokenizer,
            pairs,
            self.evaluate,
            cell=order["cell"],
            run=order["run"],
            decode_rows=self.decode_rows,
            timed=seconds.append,
        )
        return Done(frame(rows, GENERATIONS), {"decode_seconds": sum(seconds), **weight_bytes(model)})

    def _not_opened(self, order: dict[str, Any], prompt_ids: list[str], error: str) -> pl.DataFrame:
        """A model that cannot be opened costs its own cell and no other."""
        reason = f"{_NOT_OPENED}{order['model']['name']}: {error}"
        return _failed(order, prompt_ids, self.evaluate.continuations, reason)

    @staticmethod
    def split(order: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Halves by prompts."""
        return halved(order, "prompts")

    @staticmethod
    def failed(order: Mapping[str, Any], settings: Mapping[str, Any], reason: str) -> pl.DataFrame:
        chosen = pl.read_parquet(settings["prompts"]).slice(order["first"], order["prompts"])
        samples = order["rows"] // order["prompts"]
        return _failed(order, chosen["prompt_id"].to_list(), samples, reason)


def _failed(order: Mapping[str, Any], prompt_ids: list[str], samples: int, reason: str) -> pl.DataFrame:
    """A row without a text, and the reason, for every continuation that the order asks for."""
    failed = {
        "cell": order["cell"],
        "run": order["run"],
        "text": None,
        "n_tokens": None,
        "ended": None,
        "error": reason,
    }
    return frame(
        [
            {**failed, "prompt_id": prompt_id, "sample": sample}
            for prompt_id in prompt_ids
            for sample in range(samples)
        ],
        GENERATIONS,
    )


def decode_costs(
    facts: Mapping[str, dict[str, Any]], orders: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Per cell `seconds`, the sum of its orders' decoding as their workers clocked it, and the bytes of its weights.

    A cell one of whose orders decoded nothing, its model not having opened, is left out: part of a sum is no sum.
    """
    cells: dict[str, list[dict[str, Any]]] = {}
    for order in orders:
        cells.setdefault(str(order["cell"]), []).append(facts[str(order["id"])])
    return {
        cell: {
            "seconds": round(sum(part["decode_seconds"] for part in parts), 6),
            "weight_bytes": parts[0]["weight_bytes"],
            "extra_bytes": parts[0]["extra_bytes"],
        }
        for cell, parts in cells.items()
        if all("decode_seconds" in part for part in parts)
    }


def run(context: Context, cells: Sequence[Cell]) -> tuple[Path, Manifest]:
    """(folder with generations.parquet and prompts.parquet, manifest). Cells without a model are left out.

    A cell whose model cannot be opened or gives no text at all gets its error here and loses its model; the next run tries
    it again.
    """
    started = time.perf_counter()
    experiment = context.experiment
    evaluate = experiment.evaluate
    alive = [cell for cell in cells if cell.model is not None]
    if not alive:
        raise StageError("generate: every cell failed before it had a model; see the errors above")
    prompts = context.prompts(evaluate.split)
    if prompts.height == 0:
        raise StageError(f"generate: data.prompts has no row in split {evaluate.split!r}")
    config = {"evaluate": evaluate.model_dump(mode="json", include=TEXT_FIELDS), "limit": experiment.limit}
    inputs = {cell.name: cell.model["key"] for cell in alive if cell.model} | {
        "prompts": context.prompts_sha()
    }
    key = key_for("generate", config, inputs)
    folder = private_folder(context.folder.stage("generate", key))
    manifest = finished(folder, key)
    reused = manifest is not None and not manifest.extra.get("no_text")
    partial = any((folder / "parts").glob("*.parquet"))
    if manifest is None or not reused:
        (folder / MANIFEST).unlink(missing_ok=True)
        write_parquet(folder / "prompts.parquet", prompts)
        size = experiment.cluster.prompts_per_order
        orders = [
            {
                "id": f"{cell.name}-r{run}-{first:06d}", "cell": cell.name, "model": cell.model, "run": run, "first": first,
                "prompts": min(size, prompts.height - first), "rows": min(size, prompts.height - first) * evaluate.continuations,
            }
            for cell in alive
            for run in range(evaluate.runs)
            for first in range(0, prompts.height, size)
        ]  # fmt: skip
        settings = {
            "evaluate": evaluate.model_dump(mode="json"), "prompts": str(folder / "prompts.parquet"),
            "decode_rows": experiment.cluster.decode_rows, "threads": experiment.cluster.threads,
        }  # fmt: skip
        with context.display.task("generating", "texts") as advance:
            table = fulfil(
                GenerateWorker, settings, orders, folder,
                actors=experiment.cluster.generate_actors, context=context, progress=advance,
            )  # fmt: skip
        table = check(table, GENERATIONS, "generations")
        # A model that cannot be opened, kills its workers or never gives a number has no row to show: its cell has failed.
        by_cell = table.group_by("cell", maintain_order=True).agg(
            pl.col("text").null_count() == pl.len(), pl.col("error").first()
        )
        no_text = dict(by_cell.filter(pl.col("text")).select("cell", "error").iter_rows())
        table = table.filter(~pl.col("cell").is_in(list(no_text)))
        if table.height == 0:
            raise StageError(f"generate: no cell gave a text; {next(iter(no_text.values()), '')}")
        expected = (len(alive) - len(no_text)) * evaluate.runs * prompts.height * evaluate.continuations
        failed = int(table["error"].is_not_null().sum())
        unique = table.select("cell", "prompt_id", "run", "sample").n_unique()
        if unique != expected:
            raise StageError(f"generate: {unique} different continuations, expected {expected}")
        write_parquet(folder / "generations.parquet", table)
        decode = decode_costs(facts_of(folder, orders), orders)
        if no_text:
            clear_parts(folder, [str(order["id"]) for order in orders if order["cell"] in no_text])
        else:
            clear_parts(folder)
        tokens = {
            row["cell"]: row["n_tokens"]
            for row in table.group_by("cell").agg(pl.col("n_tokens").sum()).to_dicts()
        }
        manifest = write_manifest(
            folder, stage="generate", key=key, seconds=time.perf_counter() - started, config=config, inputs=inputs,
            counts={"expected": expected, "ok": expected - failed, "failed": failed}, extra={"tokens": tokens, "no_text": no_text, "decode": decode},
        )  # fmt: skip
    for cell in alive:
        error = manifest.extra.get("no_text", {}).get(cell.name)
        if error is not None:
            cell.model, cell.error = None, error
    context.record(
        "generate", key, time.perf_counter() - started, reused=reused, tokens=sum(manifest.extra["tokens"].values()),
        processes=experiment.cluster.generate_actors,
        devices=held.by_actors(context, experiment.cluster.generate_actors, len(alive) * evaluate.runs), partial=partial,
    )  # fmt: skip
    return folder, manifest
