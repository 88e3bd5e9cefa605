"""What stages are made of: items of groups, pools and trials, and what each of them keeps in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from unidetox_ray.plan import durations, memory
from unidetox_ray.plan.amounts import Amounts, PlannedCell
from unidetox_ray.plan.counting import Model
from unidetox_ray.plan.devices import Fleet
from unidetox_ray.plan.durations import Spent
from unidetox_ray.plan.engine import Cell, Item, Stage
from unidetox_ray.plan.memory import BYTES, Memory
from unidetox_ray.plan.texts import Tokens
from unidetox_ray.settings import FinetuneSection, ToxicSection


@dataclass
class Need:
    """What one cell of a stage needs of a device."""

    cell: Cell
    memory: Memory
    disk: float = 0.0
    world: int = 1
    rows: int = -1
    """Rows of a decoded batch; 0 = not even one fits, -1 = nothing is decoded."""


class Parts:
    """An experiment on a fleet. `stages` in the order they are added, `needs` by cell."""

    def __init__(self, amounts: Amounts, fleet: Fleet) -> None:
        self.amounts, self.fleet, self.rates = amounts, fleet, fleet.rates
        self.experiment = amounts.experiment
        self.cluster = self.experiment.cluster
        self.host = fleet.rates.host
        self.stages: list[Stage] = []
        self.needs: list[Need] = []
        self.operations: dict[Cell, float] = {}

    @property
    def compiled(self) -> bool:
        return self.fleet.gpu

    def _actor_devices(self) -> float:
        """Devices that an actor holds: GPUs where there are any, else CPU cores."""
        if not self.fleet.gpu:
            return float(self.cluster.cpus_per_actor)
        return 1.0 if self.cluster.gpus_per_actor is None else float(self.cluster.gpus_per_actor)

    def _add(self, stage: Stage, spent: Iterable[tuple[Cell, Spent]] = ()) -> None:
        tokens = operations = 0.0
        for cell, each in spent:
            tokens, operations = tokens + each.tokens, operations + each.operations
            self.operations[cell] = self.operations.get(cell, 0.0) + each.operations
        if stage.items or stage.alone:
            self.stages.append(replace(stage, tokens=tokens, operations=operations))

    def _need(self, cell: Cell, found: Memory, **more: float | str) -> None:
        self.needs.append(Need(cell, found, **more))  # type: ignore[arg-type]

    def _groups(self, name: str, jobs: dict[str, list[tuple[Item, Spent]]]) -> None:
        """Ray Train groups: a queue a family, each lane holding workers_per_cell devices."""
        queues = tuple(tuple(item for item, _ in found) for found in jobs.values())
        stage = Stage(
            name, queues, lanes=len(queues), devices=float(self.cluster.workers_per_cell), start=self.host["group_seconds"],
            start_cpu=self.host["group_cpu_seconds"], shared=False,
            extra_lanes=self.cluster.concurrent_cells, alone=0.0,
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for found in jobs.values() for item, spent in found])

    def _pool(self, name: str, items: Sequence[tuple[Item, Spent]], actors: int) -> None:
        """A Ray Data pool of actors."""
        stage = Stage(
            name, (tuple(item for item, _ in items),), lanes=actors, devices=self._actor_devices(),
            start=self.host["pool_seconds"], order=self.host["order_seconds"],
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for item, spent in items])

    def _trials(
        self,
        name: str,
        items: Sequence[tuple[Item, Spent]],
        devices: float,
        most: int | None,
        *,
        trains: bool = False,
    ) -> None:
        nested = (
            self.host["group_seconds"] + self.host["group_cpu_seconds"]
            if trains and self.cluster.workers_per_cell > 1
            else 0.0
        )
        stage = Stage(
            name, (tuple(replace(item, seconds=item.seconds + nested) for item, _ in items),), lanes=len(items) or 1,
            devices=devices, start=self.host["trial_seconds"],
            extra_lanes=most if most is not None else (self.cluster.concurrent_cells if trains else None),
        )  # fmt: skip
        self._add(stage, [(item.cell, spent) for item, spent in items])

    def _train_item(
        self, cell: Cell, model: Model, section: ToxicSection | FinetuneSection, texts: Tokens, rows: int, steps: int,
        *, kept: bool = True,
    ) -> tuple[Item, Spent]:  # fmt: skip
        """One training. kept: whether its model is saved; trials keep numbers alone."""
        world = self.cluster.workers_per_cell
        padded = texts.most if section.pad_to == "longest" else None
        if section.packing:
            padded = float(section.max_length)
        spent = durations.training(self.rates, model, section, texts, rows, steps, world, padded=padded)
        item = 4 if section.precision == "fp32" else 2
        adapted = isinstance(section, FinetuneSection) and section.adapter == "bottleneck"
        found = memory.training(
            model, section, math.ceil(rows / world), math.ceil(padded or texts.longest_of(10**6)), world,
            compiled=self.compiled and section.compile != "off",
        )  # fmt: skip
        total, trained = memory.trainable_of(model, section)
        disk = float(item * (trained if adapted else model.parameters)) if kept else 0.0
        if section.checkpoint_every:
            disk += item * total + 2.0 * (2 if section.precision == "bf16_pure" else 4) * trained
        self._need(cell, found, disk=disk, world=world)
        opened = 4.0 * model.parameters if section.precision == "fp32" else 2.0 * model.parameters
        saved = durations.saving(self.rates, model, item) if kept else 0.0
        # Jobs of a group load their base model anew each time.
        whole = spent.seconds + saved + durations.opening(self.rates, opened)
        return Item(cell, whole), spent

    def _opened(self, cell: Cell, spent: Spent, decoders: Sequence[Model]) -> Item:
        item = BYTES[self.experiment.evaluate.precision]
        load = float(item * sum(model.parameters for model in decoders))
        return Item(cell, spent.seconds, cell.name, load)

    @staticmethod
    def _cell(stage: str, cell: PlannedCell) -> Cell:
        return Cell(stage, cell.family, cell.label, cell.seed)

    def _continued(
        self, family: str, decoders: Sequence[Model], prompts: Tokens, continuations: int
    ) -> Spent:
        evaluate = self.experiment.evaluate
        return durations.decoding(
            self.rates, decoders, evaluate.precision, sequences=prompts.count * continuations,
            rows=self._decode_rows(decoders, prompts), prompt=prompts.mean, mean=self.amounts.continuation_tokens(family),
            most=float(evaluate.max_new_tokens), copies=continuations, nucleus=evaluate.top_p < 1 or evaluate.top_k > 0,
        )  # fmt: skip

    def _decode_rows(self, decoders: Sequence[Model], prompts: Tokens) -> int:
        """Rows of an evaluation batch: cluster.decode_rows, or as many as fit after halving."""
        evaluate = self.experiment.evaluate
        wanted = self.cluster.decode_rows
        if not self.fleet.gpu:
            return wanted
        weights = BYTES[evaluate.precision] * sum(model.parameters for model in decoders)
        capacity = math.ceil(prompts.most) + evaluate.max_new_tokens
        fit = memory.rows_of(
            decoders,
            evaluate.precision,
            self.fleet.memory - memory.CONTEXT - weights,
            capacity,
            wanted,
            math.ceil(prompts.most),
            gpu=True,
        )
        return min(wanted, fit)

    def _decode_memory(self, decoders: Sequence[Model], prompts: Tokens) -> Memory:
        evaluate = self.experiment.evaluate
        rows = max(1, self._decode_rows(decoders, prompts))
        capacity = math.ceil(prompts.most) + evaluate.max_new_tokens
        return memory.decoding(
            decoders, evaluate.precision, rows, capacity, math.ceil(prompts.most), gpu=self.fleet.gpu
        )


def shards(total: int, size: int) -> list[tuple[int, int]]:
    """(rows, how many such) of `total` rows in shards of `size`, the short one last."""
    whole, rest = divmod(total, size)
    return [*([(size, whole)] if whole else []), *([(rest, 1)] if rest else [])]
