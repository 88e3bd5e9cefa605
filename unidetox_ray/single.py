"""One stage alone on given inputs: the functions behind `finetune`, `generate` and `score`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from unidetox_ray.artifacts import RunFolder, file_sha256, key_for, write_jsonl, write_parquet
from unidetox_ray.config import resolve
from unidetox_ray.errors import ConfigError, DataError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.context import Context, Display


def context_of(
    work: Path, overrides: Sequence[str], section: str, display: Display, limit: int | None = None
) -> Context:
    """A context for one stage that works below `work`: the defaults, with `overrides` of one section."""
    values = {
        "name": "single",
        "base_family": "gpt2",
        "families": ["gpt2"],
        "methods": ["base"],
        "tracking": {"uri": "none"},
    }
    prefixed = [
        text if text.startswith(("cluster.", f"{section}.")) else f"{section}.{text}" for text in overrides
    ]
    experiment = resolve(values, prefixed, where="command line", limit=limit)
    return Context(experiment, RunFolder(work, "single", work / "cache"), display)


def _beside(out: Path) -> Path:
    """Where the work for `out` is kept until it is done."""
    return out.parent / f".{out.name}.work"


def finetune_one(
    model: str, corpus: Path, out: Path, overrides: Sequence[str], *, seed: int, display: Display
) -> Path:
    """Fine-tune `model` on `corpus` with the training stage; the finished folder becomes `out`."""
    from unidetox_ray.data.text import load_corpus
    from unidetox_ray.settings import ModelRef
    from unidetox_ray.stages.finetune import cell_job
    from unidetox_ray.stages.models import handle_of
    from unidetox_ray.stages.training import run_group
    from unidetox_ray.stages.watch import watched

    if (out / "config.json").exists():
        raise ConfigError(f"--out {out}: already holds a model; name a new folder")
    table = load_corpus(corpus)
    base = handle_of(ModelRef(source=model), "gpt2")  # before anything is written
    context = context_of(_beside(out), overrides, "finetune", display)
    source = context.folder.root / "corpus.parquet"
    write_parquet(source, table)
    digest = file_sha256(source)
    cell = Cell("model", "gpt2", MethodEntry(method="unidetox", label="corpus"), seed, base)

    class Given:
        key = key_for("file", {}, {"corpus": digest})
        extra = {"sha256": digest}  # noqa: RUF012

    job = cell_job(context, cell, context.experiment.finetune, (source.parent, Given))  # type: ignore[arg-type]
    try:
        context.connect()
        with watched(context, "fine-tuning", [job]):
            outcome = run_group(
                f"single-{job.key}", [job], context.experiment.cluster, context.folder.root / "ray"
            )[0]
    finally:
        context.close()
    if outcome.error is not None:
        raise outcome.kind(f"finetune: {outcome.error}")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(job.folder, out)
    shutil.rmtree(context.folder.root.parent, ignore_errors=True)
    return out


def read_table(path: Path, needed: Sequence[str]) -> pl.DataFrame:
    """A user's table, texts such as NA kept as they are; DataError naming the missing column."""
    from unidetox_ray.data import files
    from unidetox_ray.data.base import Options, Request

    table = files.read_table(path, Request(path, Options()))
    for name in needed:
        if name not in table.columns:
            raise DataError(f"{path}: column {name!r} is missing; it holds {table.columns}")
        if table.schema[name] == pl.Null:  # a column of nulls, or no rows: neither has a type of its own
            table = table.with_columns(pl.col(name).cast(pl.String))
        if name in {"prompt", "text"} and table.schema[name] != pl.String:
            raise DataError(f"{path}: column {name!r} holds {table.schema[name]}, expected text")
    if table.is_empty():
        raise DataError(f"{path}: holds no rows")
    return table


def write_table(table: pl.DataFrame, out: Path) -> None:
    if out.suffix not in {".parquet", ".jsonl"}:
        raise ConfigError(f"--out {out}: unknown suffix {out.suffix!r}; accepted: .parquet, .jsonl")
    (write_parquet if out.suffix == ".parquet" else write_jsonl)(out, table)


def prompt_table(prompts: Path, limit: int | None = None) -> pl.DataFrame:
    """A user's prompts with the columns of schemas.PROMPTS, all in split test; DataError. limit: the first so many."""
    table = read_table(prompts, ["prompt"])
    columns = {
        "prompt_id": pl.int_range(pl.len()).cast(pl.String).str.zfill(6)
        if "prompt_id" not in table.columns
        else pl.col("prompt_id").cast(pl.String),
        "domain": pl.lit("all") if "domain" not in table.columns else pl.col("domain"),
        "group": pl.lit("") if "group" not in table.columns else pl.col("group"),
        "distribution": pl.lit("id") if "distribution" not in table.columns else pl.col("distribution"),
        "split": pl.lit("test"),
    }
    given = table.with_columns(**columns).head(limit or table.height)
    for name in ("prompt_id", "prompt"):
        if given[name].null_count():
            raise DataError(
                f"{prompts}: column {name!r} is empty in {given[name].null_count()} rows; fill it in or leave the column out"
            )
    if given["prompt_id"].n_unique() < given.height:
        raise DataError(f"{prompts}: column 'prompt_id' names a prompt twice; give each its own")
    return given


def generate_one(
    model: str, prompts: Path, out: Path, overrides: Sequence[str], *, limit: int | None, display: Display
) -> int:
    """Continuations of a user's prompts, through the generation stage."""
    from unidetox_ray.settings import ModelRef
    from unidetox_ray.stages import generate
    from unidetox_ray.stages.models import handle_of

    given = prompt_table(prompts, limit)
    if out.suffix not in {".parquet", ".jsonl"}:
        raise ConfigError(f"--out {out}: unknown suffix {out.suffix!r}; accepted: .parquet, .jsonl")
    base = handle_of(ModelRef(source=model), "gpt2")  # before anything is written
    context = context_of(_beside(out), overrides, "evaluate", display)
    context.use_prompts(given, file_sha256(prompts))
    cell = Cell(
        "model",
        "gpt2",
        MethodEntry(method="base", label="base"),
        0,
        base,
    )
    cell.model = cell.base
    try:
        folder, _ = generate.run(context, [cell])
    finally:
        context.close()
    found = pl.read_parquet(folder / "generations.parquet").join(
        given.select("prompt_id", "prompt", "domain", "distribution"), on="prompt_id", maintain_order="left"
    )
    write_table(found, out)
    shutil.rmtree(context.folder.root.parent, ignore_errors=True)
    return found.height
