"""Orders whose worker dies: tried again, then halved until the rows that kill it stand alone and count as failed.

A death may have nothing to do with the order in hand (a preempted machine), so an order is first tried again as it is. One that
goes on killing its worker is halved, halves that do so again and again, down to what cannot be halved: a prompt, a text. That
is given up with a reason, and everything beside it is worked off. Neither is anything retried for ever nor a row lost in silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from unidetox_ray.artifacts import write_parquet
from unidetox_ray.errors import StageError

Order = Mapping[str, Any]

#: Levels at which every piece of an order killed its worker, after which no single row can be the cause.
_HOPELESS = 2


class Divisible(Protocol):
    """What a worker's class adds where its orders may be halved and given up."""

    @staticmethod
    def split(order: Order) -> list[dict[str, Any]]:
        """Two orders with ids and `rows` of their own that together make this one, in its order; [] for a single one."""
        ...

    @staticmethod
    def failed(order: Order, settings: Mapping[str, Any], reason: str) -> pl.DataFrame:
        """The order's rows, each of them failed for this reason."""
        ...


def part_of(parts: Path, order: Order) -> Path:
    """The file that says by being there that the order is done."""
    return parts / f"{order['id']}.parquet"


def halved(order: Order, count: str) -> list[dict[str, Any]]:
    """What `Divisible.split` returns for an order over `order[count]` places from `order["first"]`, each of equally many rows."""
    places = int(order[count])
    half, each = places // 2, order["rows"] // places
    if half == 0:
        return []
    pieces = ((order["first"], half), (order["first"] + half, places - half))
    return [
        {**order, "id": f"{order['id']}.{number}", "first": first, count: size, "rows": size * each}
        for number, (first, size) in enumerate(pieces)
    ]


def unfinished(parts: Path, orders: Sequence[Order]) -> list[Order]:
    """Orders that have no part yet.

    The folder is listed, not asked for each file: a network mount may remember for half a minute that a file was not there, but
    looks a folder up anew when it is opened.
    """
    try:
        there = {entry.name for entry in os.scandir(parts)}
    except FileNotFoundError:
        there = set()
    return [order for order in orders if part_of(parts, order).name not in there]


@dataclass(frozen=True)
class Recovery:
    """attempt: one pass over orders, which leaves a part for every order that was worked off and none for the others.

    worker: the class whose orders these are. tries: how often an order is tried as a whole, at least 1. say: a line for the user.
    """

    parts: Path
    attempt: Callable[[Sequence[Order]], None]
    worker: Any
    settings: Mapping[str, Any]
    tries: int
    say: Callable[[str], None]

    def missing(self, orders: Sequence[Order]) -> list[Order]:
        return unfinished(self.parts, orders)

    def run(self, orders: Sequence[Order]) -> None:
        """Leaves a part for every order; StageError when workers die whatever they are given."""
        waiting = self.missing(orders)
        for _ in range(self.tries):
            if not waiting:
                return
            self.attempt(waiting)
            waiting = self.missing(waiting)
        if not waiting:
            return
        if len(waiting) == len(orders):
            raise StageError(
                f"{self.parts.parent.name}: every worker died before it had finished one order, {self.tries} times over (killed, or "
                "out of memory?); see Ray's logs, lower cluster.decode_rows or cluster.score_tokens, and run again"
            )
        if not hasattr(self.worker, "split"):
            raise StageError(
                f"{self.parts.parent.name}: {len(waiting)} of {len(orders)} orders ({waiting[0]['id']} first) killed their worker "
                f"{self.tries} times; see Ray's logs; the same command tries them again"
            )
        names = ", ".join(str(order["id"]) for order in waiting[:3])
        self.say(
            f"{self.parts.parent.name}: {len(waiting)} orders killed their worker {self.tries} times ({names}); halving them"
        )
        self._halve(waiting)

    def _halve(self, orders: Sequence[Order]) -> None:
        suspects = [(order, 0) for order in orders]
        while suspects:
            pieces = {str(order["id"]): self.worker.split(order) for order, _ in suspects}
            waiting = [piece for each in pieces.values() for piece in each]
            for _ in range(min(self.tries, 2)):  # a piece is not blamed for one death
                waiting = self.missing(waiting)
                if waiting:
                    self.attempt(waiting)
            following = []
            for order, hopeless in suspects:
                mine = pieces[str(order["id"])]
                lost = self.missing(mine)
                hopeless = hopeless + 1 if mine and len(lost) == len(mine) else 0
                if not mine or hopeless >= _HOPELESS:
                    self._give_up(order, mine)
                else:
                    following += [(piece, hopeless) for piece in lost]
            suspects = following
        for order in orders:
            self._join(order)

    def _give_up(self, order: Order, pieces: Sequence[Order]) -> None:
        for piece in pieces:
            part_of(self.parts, piece).unlink(missing_ok=True)
        reason = "killed its worker every time it was tried"
        write_parquet(part_of(self.parts, order), self.worker.failed(order, self.settings, reason))

    def _join(self, order: Order) -> pl.DataFrame:
        """The order's part, put together from its pieces', which go."""
        if not part_of(self.parts, order).exists():
            pieces = self.worker.split(order)
            write_parquet(part_of(self.parts, order), pl.concat([self._join(piece) for piece in pieces]))
            for piece in pieces:
                part_of(self.parts, piece).unlink()
        return pl.read_parquet(part_of(self.parts, order))
