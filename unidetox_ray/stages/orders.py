"""Sharded work on Ray Data: orders in, one file per order out, resumable order by order.

An order is a small JSON value that fixes its own result: actors, their number and their deaths cannot change it. The actor
writes `parts/<order id>.parquet` by atomic rename as soon as the order is done and returns a receipt.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from unidetox_ray.artifacts import private_folder, write_parquet
from unidetox_ray.core.batching import device_lost
from unidetox_ray.errors import StageError, UnidetoxError, kind_named
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.recovery import Recovery, part_of, unfinished

Progress = Callable[[int, int], None]
_FACTS = "unidetox.facts"


@dataclass(frozen=True)
class Done:
    """An order's table and what is to be kept with it: plain values, such as what it cost. See `facts_of`."""

    table: pl.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)


class Worker(Protocol):
    """Built once per actor with the stage's settings; `work` turns one order into a table."""

    def __init__(self, settings: dict[str, Any]) -> None: ...

    def work(self, order: dict[str, Any]) -> pl.DataFrame | Done: ...


@dataclass(frozen=True)
class Lot:
    """Orders for one kind of worker. Each has `id` (a file name) and `rows` (expected)."""

    worker: type[Worker]
    settings: Mapping[str, Any]
    orders: Sequence[Mapping[str, Any]]
    folder: Path

    @property
    def parts(self) -> Path:
        return self.folder / "parts"

    @property
    def missing(self) -> list[Mapping[str, Any]]:
        """Orders that have no part yet."""
        return unfinished(self.parts, self.orders)


class OrderActor:
    """The Ray Data UDF: builds a lot's worker on its first order, then takes order after order. Lots come one after another.

    A failure is returned as a receipt: raised here, its words would be lost among Ray's advice on retries.
    """

    def __init__(self, lots: list[tuple[type[Worker], dict[str, Any], str]]) -> None:
        self.lots = lots
        self.lot: int | None = None
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        receipts = [
            {"lot": int(lot), **self._receipt(int(lot), json.loads(str(text)))}
            for lot, text in zip(batch["lot"], batch["order"], strict=True)
        ]
        return {"receipt": [json.dumps(receipt) for receipt in receipts]}

    def _receipt(self, lot: int, order: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        worker, settings, parts = self.lots[lot]
        try:
            if self.worker is None or self.lot != lot:
                self.worker = None  # the models of two lots need not fit side by side
                self.worker, self.lot = worker(settings), lot
            made = self.worker.work(order)
            done = made if isinstance(made, Done) else Done(made)
            # In the part itself: a run that is taken up again finds them where it finds the rows.
            facts = {_FACTS: json.dumps(done.facts)} if done.facts else None
            write_parquet(part_of(Path(parts), order), done.table, facts)
        except Exception as error:  # whatever it is, the driver ends the stage with it
            if device_lost(error):
                # Nothing more can be done in this process; its death is retried like any other, in a new one.
                traceback.print_exc()
                os._exit(1)
            kind = type(error).__name__
            text = f"{error}" if isinstance(error, UnidetoxError) else f"{kind}: {error}"
            if isinstance(error, FileNotFoundError):
                text += (
                    f" ({socket.gethostname()}; every node must see storage and cache under the same path)"
                )
            return {"id": order["id"], "error": text, "kind": kind, "trace": traceback.format_exc()}
        spent = time.perf_counter() - started
        return {"id": order["id"], "rows": done.table.height, "seconds": spent, "host": socket.gethostname()}


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

    An order that goes on killing its actor is halved where the worker can (`recovery.Divisible`). StageError when an actor
    fails or a part's rows do not add up; an error of ours keeps its kind, so that a user's mistake found by a worker ends the
    command as one.
    """
    lot = Lot(worker, settings, orders, folder)
    private_folder(lot.parts)
    done = sum(int(order["rows"]) for order in orders) - sum(int(order["rows"]) for order in lot.missing)
    bar = _Bar(sum(int(order["rows"]) for order in orders), done, progress)
    # What waits behind a deadly order in the same actor dies with it: after the first pass an actor has one order at a time.
    in_flight = iter([2])

    def one_pass(waiting: Sequence[Mapping[str, Any]]) -> None:
        _pass([replace(lot, orders=waiting)], actors, context, bar, in_flight=next(in_flight, 1))

    tries = context.experiment.cluster.max_restarts + 1
    Recovery(lot.parts, one_pass, worker, settings, tries, context.display.say).run(orders)
    tables = []
    for order in orders:
        table = pl.read_parquet(part_of(lot.parts, order))
        if table.height != order["rows"]:
            raise StageError(
                f"{folder.name}: order {order['id']} has {table.height} rows, expected {order['rows']}; "
                f"delete {lot.parts} and run again"
            )
        tables.append(table)
    return pl.concat(tables)


def work_off(
    lots: Sequence[Lot], *, actors: int, context: Context, progress: Progress | None = None
) -> list[float]:
    """One pass over what is missing, all lots in one pool, one after another; what `fulfil` raises of failed actors.

    Returns the seconds that actors spent on each lot, the opening of models included. An order whose actor died has no part
    afterwards: `fulfil` tries it again.
    """
    total = sum(int(order["rows"]) for lot in lots for order in lot.orders)
    for lot in lots:
        private_folder(lot.parts)
    waiting = [replace(lot, orders=lot.missing) for lot in lots]
    done = total - sum(int(order["rows"]) for lot in waiting for order in lot.orders)
    return _pass(waiting, actors, context, _Bar(total, done, progress), in_flight=2)


@dataclass
class _Bar:
    """Rows done, for the display."""

    total: int
    done: int
    progress: Progress | None

    def add(self, rows: int) -> None:
        self.done += rows
        if self.progress:
            self.progress(self.done, self.total)


def _pass(lots: Sequence[Lot], actors: int, context: Context, bar: _Bar, *, in_flight: int) -> list[float]:
    """All orders of the lots once over a pool of actors; the seconds spent on each lot. An order whose actor dies leaves no part,
    and the others go on."""
    seconds = [0.0] * len(lots)
    items = [
        {"lot": index, "order": json.dumps(order)} for index, lot in enumerate(lots) for order in lot.orders
    ]
    if not items:
        return seconds
    context.connect()
    cluster = context.experiment.cluster
    import ray
    from ray.data import ActorPoolStrategy

    from unidetox_ray.stages.cluster import gpus_per_actor

    rows = {
        (index, str(order["id"])): int(order["rows"])
        for index, lot in enumerate(lots)
        for order in lot.orders
    }
    # An order whose actor dies costs its own block alone. None is lost by that: `fulfil` counts the parts of all orders.
    ray.data.DataContext.get_current().max_errored_blocks = -1
    receipts = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            OrderActor,
            batch_size=None,
            compute=ActorPoolStrategy(size=min(actors, len(items)), max_tasks_in_flight_per_actor=in_flight),
            num_cpus=cluster.cpus_per_actor,
            num_gpus=gpus_per_actor(cluster),
            # Actors are born again without end; what bounds them is that an order is tried once in a pass.
            max_restarts=-1,
            max_task_retries=0,
            fn_constructor_kwargs={
                "lots": [(lot.worker, dict(lot.settings), str(lot.parts)) for lot in lots]
            },
        )
        .iter_rows()
    )
    failure: dict[str, Any] = {}
    finished: list[dict[str, str]] = [{} for _ in lots]
    try:
        for row in receipts:
            receipt = json.loads(row["receipt"])
            if "error" in receipt:
                failure = receipt
                break  # ends the pool
            seconds[receipt["lot"]] += receipt["seconds"]
            finished[receipt["lot"]][receipt["id"]] = receipt["host"]
            bar.add(rows[receipt["lot"], receipt["id"]])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        names = ", ".join(lot.folder.name for lot in lots)
        raise StageError(f"{names}: {type(cause).__name__}: {str(cause).strip().splitlines()[-1]}") from error
    if failure:
        name = lots[failure["lot"]].folder.name
        problem = kind_named(failure["kind"])(f"{name}, order {failure['id']}: {failure['error']}")
        problem.add_note(failure["trace"])
        raise problem
    for lot, hosts in zip(lots, finished, strict=True):
        _refuse_apart(lot, hosts)
    return seconds


def _refuse_apart(lot: Lot, hosts: Mapping[str, str]) -> None:
    """StageError when a part that a worker has written is not here: its node writes to a disk of its own.

    Such an order must not be taken for one whose worker died, which would be tried again and given up as failed in the end.
    hosts: id of every order that was finished -> the machine that did.
    """
    lost = [order for order in lot.missing if str(order["id"]) in hosts]
    if lost:
        raise StageError(
            f"{lot.folder.name}: order {lost[0]['id']} was finished on {hosts[str(lost[0]['id'])]} but is not to be seen here; storage "
            f"must be a folder that every node sees under the same path, {lot.parts} is not (docs/clusters.md)"
        )


def facts_of(folder: Path, orders: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What workers kept with their parts, by order, of earlier runs too; empty where they kept nothing. Before
    `clear_parts`."""
    found = {}
    for order in orders:
        stored = pl.read_parquet_metadata(part_of(folder / "parts", order)).get(_FACTS)
        found[str(order["id"])] = json.loads(stored) if stored else {}
    return found


def clear_parts(folder: Path, only: Sequence[str] | None = None) -> None:
    """The parts have become one table. only: ids of orders that are to be worked off again, the others' parts stay."""
    if only is None:
        shutil.rmtree(folder / "parts", ignore_errors=True)
    for name in only or ():
        part_of(folder / "parts", {"id": name}).unlink(missing_ok=True)
