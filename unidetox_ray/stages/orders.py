"""Sharded work on Ray Data: orders in, one file per order out, resumable order by order.

An order is a small JSON value that fixes its own result: actors, their number and their deaths cannot change it. The actor
writes `parts/<order id>.parquet` by atomic rename as soon as the order is done and returns a receipt.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from unidetox_ray.artifacts import private_folder, write_parquet
from unidetox_ray.errors import StageError
from unidetox_ray.stages.context import Context

Progress = Callable[[int, int], None]


class Worker(Protocol):
    """Built once per actor with the stage's settings; `work` turns one order into a table."""

    def __init__(self, settings: dict[str, Any]) -> None: ...

    def work(self, order: dict[str, Any]) -> pl.DataFrame: ...


class OrderActor:
    """The Ray Data UDF: loads the worker once, then takes order after order."""

    def __init__(self, worker: type[Worker], settings: dict[str, Any], parts: str) -> None:
        self.worker = worker(settings)
        self.parts = Path(parts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        receipts = []
        for text in batch["order"]:
            order = json.loads(str(text))
            started = time.perf_counter()
            table = self.worker.work(order)
            write_parquet(self.parts / f"{order['id']}.parquet", table)
            receipts.append(
                json.dumps(
                    {"id": order["id"], "rows": table.height, "seconds": time.perf_counter() - started}
                )
            )
        return {"receipt": receipts}


def fulfil(
    worker: type[Worker],
    settings: Mapping[str, Any],
    orders: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    actors: int,
    context: Context,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Work off the orders that have no part yet, then return all parts in the order of `orders`.

    Each order has `id` (a file name) and `rows` (expected). StageError when an actor fails or a part's rows do not add up.
    """
    parts = private_folder(folder / "parts")
    total = sum(int(order["rows"]) for order in orders)
    missing = [order for order in orders if not (parts / f"{order['id']}.parquet").exists()]
    done = total - sum(int(order["rows"]) for order in missing)
    if missing:
        context.connect()
        cluster = context.experiment.cluster
        import ray
        from ray.data import ActorPoolStrategy

        from unidetox_ray.stages.cluster import gpus_per_actor

        rows = {str(order["id"]): int(order["rows"]) for order in missing}
        items = [{"order": json.dumps(order)} for order in missing]
        size = min(actors, len(items))
        receipts = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(
                OrderActor,
                batch_size=None,
                compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
                num_cpus=cluster.cpus_per_actor,
                num_gpus=gpus_per_actor(cluster),
                max_restarts=cluster.max_restarts,
                max_task_retries=cluster.max_restarts,
                fn_constructor_kwargs={"worker": worker, "settings": dict(settings), "parts": str(parts)},
            )
            .iter_rows()
        )
        try:
            for row in receipts:
                done += rows[json.loads(row["receipt"])["id"]]
                if progress:
                    progress(done, total)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise StageError(
                f"{folder.name}: {type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"
            ) from error
    tables = []
    for order in orders:
        table = pl.read_parquet(parts / f"{order['id']}.parquet")
        if table.height != order["rows"]:
            raise StageError(
                f"{folder.name}: order {order['id']} has {table.height} rows, expected {order['rows']}; delete {parts} and run again"
            )
        tables.append(table)
    return pl.concat(tables)


def clear_parts(folder: Path) -> None:
    """The parts have become one table."""
    shutil.rmtree(folder / "parts", ignore_errors=True)
