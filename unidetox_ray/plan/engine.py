"""Stages of items → a schedule, event by event, by the pipeline's own rules.

Stages run one after another. Within a stage a number of lanes (actors, training groups, trials, tasks) each hold some
devices, start once, and take items from one queue (pools, tasks, trials) or from a queue of their own (training groups).
An item opens its model first where the lane holds another one. Every item passes through the driver, which hands out one
at a time. Times in seconds. Pure Python: a heap of the times at which lanes become free.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from unidetox_ray.plan.devices import Fleet
from unidetox_ray.plan.durations import opening

#: What device-time is lost to, worst first where equal; also the words of the scaling table.
LOSSES = ("start-up", "model loading", "driver", "longest cell", "shard granularity", "one process")


@dataclass(frozen=True)
class Cell:
    """What a bar of the schedule is for. family, method: "" where a stage is not about one."""

    stage: str
    family: str
    method: str
    seed: int | None = None

    @property
    def name(self) -> str:
        parts = [part for part in (self.family, self.method) if part]
        return "-".join([*parts, *([f"s{self.seed}"] if self.seed is not None else [])]) or self.stage


@dataclass(frozen=True)
class Item:
    """What a lane does without a break, `count` times over. model: what it opens, of `load` bytes."""

    cell: Cell
    seconds: float
    model: str = ""
    load: float = 0.0
    count: int = 1


@dataclass(frozen=True)
class Stage:
    """queues: one that all lanes share, or one for each lane. devices: that a lane holds (a quarter for pre-training).

    lanes: as the experiment asks; no more run than the devices carry. start: seconds before a lane's first item;
    start_cpu: of these, CPU seconds that lanes on the same cores wait for one another with. on_cpu: lanes hold CPU cores of a
    GPU machine. alone: seconds of the driver behind everything.
    """

    name: str
    queues: tuple[tuple[Item, ...], ...]
    lanes: int = 1
    devices: float = 1.0
    start: float = 0.0
    start_cpu: float = 0.0
    order: float = 0.0
    alone: float = 0.0
    on_cpu: bool = False
    shared: bool = True
    tokens: float = 0.0
    operations: float = 0.0
    extra_lanes: float | None = None
    """Lanes at most for another reason than devices."""

    @property
    def items(self) -> int:
        return sum(item.count for queue in self.queues for item in queue)


@dataclass
class Bar:
    """A stretch of one lane's time. lane: counted from 0 within its stage."""

    cell: Cell
    lane: int
    start: float
    end: float


@dataclass
class Ran:
    """A stage in the schedule. held: devices held from start to end. busy: device-seconds of work itself. lost: device-seconds
    by reason."""

    stage: Stage
    start: float
    end: float
    lanes: int
    held: float
    busy: float
    lost: dict[str, float] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def device_seconds(self) -> float:
        return self.held * self.seconds


@dataclass
class Schedule:
    ran: list[Ran]

    @property
    def seconds(self) -> float:
        return self.ran[-1].end if self.ran else 0.0


def scheduled(stages: Sequence[Stage], fleet: Fleet, *, begin: float = 0.0, bars: bool = True) -> Schedule:
    """The stages on the fleet. begin: seconds before the first stage. bars: whether each lane's stretches are kept."""
    now, ran = begin, []
    for stage in stages:
        done = _run(stage, fleet, now, bars)
        ran.append(done)
        now = done.end
    return Schedule(ran)


def lanes_of(stage: Stage, fleet: Fleet) -> int:
    """How many lanes run at once."""
    most = fleet.count if not stage.on_cpu else max(fleet.count, 8 * -(-fleet.count // fleet.rates.per_node))
    carried = int(most // max(stage.devices, 1e-9)) if stage.devices else stage.lanes
    wanted = min(stage.lanes, max(1, stage.items))
    if stage.extra_lanes is not None:
        wanted = min(wanted, int(stage.extra_lanes))
    return max(1, min(wanted, carried))


def _run(stage: Stage, fleet: Fleet, begin: float, keep: bool) -> Ran:
    if not stage.items:
        end = begin + stage.alone
        return Ran(stage, begin, end, 0, 0.0, 0.0, {"one process": stage.alone * fleet.count})
    lanes = lanes_of(stage, fleet)
    nodes = -(-lanes // fleet.rates.per_node) if fleet.gpu else 1
    # Lanes that start on the same cores wait for one another; a start keeps two of them busy.
    crowd = max(1.0, 2.0 * lanes / fleet.count) if not fleet.gpu else max(1.0, lanes / nodes / 8)
    ready = begin + stage.start + stage.start_cpu * crowd
    queues = _dealt(stage.queues, lanes) if not stage.shared else [list(stage.queues[0])]
    heads = [0] * len(queues)
    left = [queue[0].count if queue else 0 for queue in queues]
    opened: list[str | None] = [None] * lanes
    heap = [(ready, lane) for lane in range(lanes)]
    heapq.heapify(heap)
    driver, busy, loading, waited = ready, 0.0, 0.0, 0.0
    ends = [ready] * lanes
    bars: list[Bar] = []
    last: list[Bar | None] = [None] * lanes
    loads: dict[str, float] = {}
    while heap:
        free, lane = heapq.heappop(heap)
        at = 0 if stage.shared else lane
        queue = queues[at]
        if heads[at] >= len(queue):
            continue
        item = queue[heads[at]]
        left[at] -= 1
        if left[at] == 0:
            heads[at] += 1
            left[at] = queue[heads[at]].count if heads[at] < len(queue) else 0
        driver = max(driver, free) + stage.order
        start = driver if stage.order else free
        waited += start - free
        took = 0.0
        if item.model and opened[lane] != item.model:
            took = loads.get(item.model, -1.0)
            if took < 0:
                took = loads[item.model] = opening(fleet.rates, item.load, nodes)
            opened[lane] = item.model
        end = start + took + item.seconds
        loading += took
        busy += item.seconds
        ends[lane] = end
        if keep:
            before = last[lane]
            if before is not None and before.cell == item.cell and start - before.end < 1e-6 + stage.order:
                before.end = end
            else:
                bar = Bar(item.cell, lane, start, end)
                bars.append(bar)
                last[lane] = bar
        heapq.heappush(heap, (end, lane))
    work_ends = max(ends)
    finish = work_ends + stage.alone
    held = 0.0 if stage.on_cpu and fleet.gpu else lanes * stage.devices
    tail = sum(work_ends - end for end in ends)
    idle = max(0.0, fleet.count - held) * (work_ends - begin)
    granular = "shard granularity" if stage.shared else "longest cell"
    lost = {
        "start-up": (ready - begin) * held,
        "model loading": loading * stage.devices,
        "driver": waited * stage.devices,
        granular: tail * stage.devices,
        "one process": stage.alone * fleet.count,
    }
    # Devices that no lane could use: there is nothing left to deal out at this grain.
    lost[granular] += idle
    return Ran(stage, begin, finish, lanes, held, busy * stage.devices, lost, bars)


def _dealt(queues: Sequence[Sequence[Item]], lanes: int) -> list[list[Item]]:
    """As `stages.groups.dealt`: the queues on as many lanes as run at once, the one with most items first to the shortest."""
    shares: list[list[Item]] = [[] for _ in range(lanes)]
    for queue in sorted(queues, key=len, reverse=True):
        min(shares, key=len).extend(queue)
    return shares
