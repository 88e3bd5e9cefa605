"""Continuations by models, through the experiment's own stage: the same sampling, streams and failures as in `run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.config import MethodEntry, digest
from unidetox_ray.errors import DataError
from unidetox_ray.evaluate.prompt_sets import PromptSet
from unidetox_ray.evaluate.sources import Source
from unidetox_ray.evaluate.store import Parts, finished, prompt_key, store
from unidetox_ray.settings import EvaluateSection, ModelRef
from unidetox_ray.single import context_of
from unidetox_ray.stages.context import Context, Display

#: One sampling run where nothing else is asked for: the paper's five cost five times as much.
DEFAULTS = ("evaluate.runs=1",)
#: What stands beside the numbers.
TOLD = {
    "continuations", "max_new_tokens", "temperature", "top_p", "top_k", "runs", "seed", "prompt_bos", "prefix_cut", "precision",
}  # fmt: skip


def sampling_of(work: Path, overrides: Sequence[str], display: Display) -> tuple[Context, EvaluateSection]:
    """A context that works below `work`, and the protocol with KEY=VALUE of `evaluate:` on top. ConfigError."""
    context = context_of(work, [*DEFAULTS, *overrides], "evaluate", display)
    return context, context.experiment.evaluate


def from_models(
    models: Sequence[Source], prompts: PromptSet, context: Context, work: Path
) -> dict[str, Parts | str]:
    """Label -> the continuations of every model as parts below `work`, or why there are none. ModelError, DataError."""
    from unidetox_ray.stages import generate
    from unidetox_ray.stages.cells import Cell
    from unidetox_ray.stages.models import handle_of

    for name in ("domain", "distribution"):
        if prompts.table[name].null_count():
            raise DataError(f"prompts: column {name!r} is null in {prompts.table[name].null_count()} rows")
    handles = [handle_of(ModelRef(source=each.model, revision=each.revision), "gpt2") for each in models]
    cells = []
    for number, handle in enumerate(handles):
        cell = Cell(f"m{number}", "gpt2", MethodEntry(method="base", label="base"), 0, handle)
        cell.model = handle
        cells.append(cell)
    context.use_prompts(prompts.table, digest([prompts.sha256, prompts.table["prompt_id"].to_list()]))
    try:
        folder, manifest = generate.run(context, cells)
    finally:
        context.close()
    made = pl.read_parquet(folder / "generations.parquet").join(
        prompts.table.select("prompt_id", "prompt", "domain", "distribution"), on="prompt_id", maintain_order="left"
    )
    found: dict[str, Parts | str] = {}
    for source, cell in zip(models, cells, strict=True):
        if cell.error is not None:
            found[source.label] = cell.error
            continue
        place = work / f"model-{digest([manifest.key, cell.name, source.label])[:16]}"
        rows = _rows(made.filter(pl.col("cell") == cell.name), source.label)
        found[source.label] = finished(place) or from_rows(place, rows, prompts, "generated here")
    return found


def from_rows(place: Path, rows: Iterator[dict[str, Any]], prompts: PromptSet, told: str) -> Parts:
    return store(place, rows, told=told, explicit=prompts.explicit, has_prompts=True, has_domains=True)


def _rows(made: pl.DataFrame, label: str) -> Iterator[dict[str, Any]]:
    """PART rows of the stage's."""
    for number, row in enumerate(made.iter_rows(named=True), start=1):
        yield {
            "row": number, "source": label, "prompt_id": row["prompt_id"], "prompt_key": prompt_key(row["prompt"]),
            "prompt": row["prompt"], "text": row["text"], "error": row["error"], "run": row["run"],
            "continuation": row["sample"], "domain": row["domain"], "distribution": row["distribution"],
        }  # fmt: skip


def from_table(table: pl.DataFrame, label: str) -> Iterator[dict[str, Any]]:
    """PART rows of an endpoint's generations."""
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        yield {
            "row": number, "source": label, "prompt_id": row["prompt_id"], "prompt_key": prompt_key(row["prompt"]),
            "prompt": row["prompt"], "text": row["text"], "error": row["error"], "run": 0,
            "continuation": row["continuation"], "domain": row["domain"], "distribution": row["distribution"],
        }  # fmt: skip
