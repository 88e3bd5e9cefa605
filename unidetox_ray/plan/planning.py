"""One call: an experiment on a fleet → a plan with its schedule, its costs, and what does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from unidetox_ray.config import Experiment
from unidetox_ray.errors import UnidetoxError
from unidetox_ray.plan import devices, engine, remedies
from unidetox_ray.plan.amounts import Amounts
from unidetox_ray.plan.devices import Fleet
from unidetox_ray.plan.engine import Bar, Cell, Schedule
from unidetox_ray.plan.memory import CONTEXT, PROCESS, Memory
from unidetox_ray.plan.parts import Need
from unidetox_ray.plan.result import BASELINE, GIB, CellPlan, Plan, StagePlan
from unidetox_ray.plan.work import Work

#: Settings of the baseline: one device does one thing at a time (experiments/single_a100.yaml).
_ALONE = {
    "corpus_actors": 1,
    "generate_actors": 1,
    "score_actors": 1,
    "workers_per_cell": 1,
    "concurrent_cells": 1,
}


def plan(
    experiment: Experiment, fleet: Fleet | None = None, *, price: float | None = None, table: dict[str, Any] | None = None,
    advise: bool = True, amounts: Amounts | None = None,
) -> Plan:  # fmt: skip
    """Plan an experiment. fleet: None = this machine. price: of a device-hour. advise: look for settings that make it fit, and
    plan the baseline. amounts: of this experiment, where they are known. UnidetoxError, one line, where something that is needed cannot be known."""
    fleet = fleet or devices.this_machine(table or devices.stored(), experiment.cluster.num_cpus)
    amounts = amounts or Amounts(experiment)
    work = Work(amounts, fleet)
    schedule = engine.scheduled(work.stages, fleet)
    made = Plan(
        experiment, fleet, _stages(schedule), _cells(work, schedule, fleet), schedule, _parameters(amounts),
        notes=[*amounts.notes, *_notes(experiment, fleet, amounts)], price=price,
    )  # fmt: skip
    made.problems += _fleet_problems(experiment, fleet)
    if fleet.disk_free is not None and made.disk > fleet.disk_free:
        made.problems.append(
            f"disk: the run leaves {made.disk / GIB:.1f} GiB, {experiment.storage} has {fleet.disk_free / GIB:.1f} GiB free; set "
            "storage to a larger one"
        )
    if advise:
        _advise(made, experiment, fleet)
        _baseline(made, amounts, table)
    return made


def _cells(work: Work, schedule: Schedule, fleet: Fleet) -> list[CellPlan]:
    """A line per cell of every stage, in the schedule's order; those that only need memory keep their own place."""
    bars: dict[Cell, list[Bar]] = {}
    held: dict[Cell, float] = {}
    for ran in schedule.ran:
        for bar in ran.bars:
            bars.setdefault(bar.cell, []).append(bar)
            held[bar.cell] = 0.0 if ran.stage.on_cpu and fleet.gpu else ran.stage.devices
    needs: dict[Cell, Need] = {}
    for need in work.needs:
        known = needs.get(need.cell)
        if known is None or need.memory.peak > known.memory.peak:
            needs[need.cell] = need
    found = []
    for cell in dict.fromkeys([*needs, *bars]):
        mine = bars.get(cell, [])
        need = needs.get(cell, Need(cell, Memory()))
        peak = need.memory.peak + (CONTEXT if fleet.gpu else PROCESS) if need.memory.peak else 0.0
        lanes = len({bar.lane for bar in mine})
        why = _why_not(need, peak, fleet)
        found.append(
            CellPlan(
                cell=cell, devices=lanes * held.get(cell, 0.0), seconds=max((b.end for b in mine), default=0.0) - min((b.start for b in mine), default=0.0),
                device_seconds=sum(b.end - b.start for b in mine) * held.get(cell, 0.0), memory=need.memory, peak=peak, disk=need.disk,
                operations=work.operations.get(cell, 0.0), fits=not why, why=why,
            )
        )  # fmt: skip
    places = {
        name: place
        for place, name in enumerate(dict.fromkeys(stage.name.partition("-")[0] for stage in work.stages))
    }
    found.sort(key=lambda each: places.get(each.cell.stage, len(places)))
    return found


def _why_not(need: Need, peak: float, fleet: Fleet) -> str:
    """What does not fit, in a few words; "" where all does."""
    if need.rows == 0:
        weights = need.memory.weights / GIB
        return f"not one row fits: weights {weights:.1f} GiB of {fleet.memory / GIB:.1f} GiB"
    if peak > fleet.memory:
        return f"needs {peak / GIB:.1f} GiB, a {'device' if fleet.gpu else 'process'} has {fleet.memory / GIB:.1f} GiB"
    if need.world > fleet.count:
        return f"{need.world} workers, the fleet has {fleet.count} devices"
    return ""


def _stages(schedule: Schedule) -> list[StagePlan]:
    found = []
    for ran in schedule.ran:
        worst = max(ran.lost, key=lambda name: ran.lost[name]) if ran.lost else ""
        bottleneck = worst if ran.lost.get(worst, 0.0) > ran.busy else "work"
        found.append(
            StagePlan(
                ran.stage.name,
                ran.start,
                ran.seconds,
                ran.lanes,
                ran.device_seconds,
                ran.stage.tokens,
                ran.stage.operations,
                bottleneck,
            )
        )
    return found


def _parameters(amounts: Amounts) -> dict[str, int]:
    found = {family: amounts.model(family).parameters for family in amounts.families}
    found |= {name: model.parameters for name, model in amounts.scorers.items() if model is not None}
    if amounts.judge is not None and amounts.experiment.evaluate.ppl_model not in found:
        found[str(amounts.experiment.evaluate.ppl_model)] = amounts.judge.parameters
    return found


def _notes(experiment: Experiment, fleet: Fleet, amounts: Amounts) -> list[str]:
    """What the plan assumes that the reader may have to know."""
    notes = []
    if experiment.search is not None:
        notes.append(
            f"finetune: planned with the search's most steps, {max(experiment.search.steps)}; fewer may be chosen"
        )
    if any("steps" in entry.tune for entry in experiment.methods):
        notes.append("finetune: tuned entries are planned with the most steps of their grid")
    cluster = experiment.cluster
    asked = {name: getattr(cluster, name) for name in ("corpus_actors", "generate_actors", "score_actors")}
    if fleet.gpu and (cluster.gpus_per_actor or 1.0) * max(asked.values()) < fleet.count:
        notes.append(
            f"pools: at most {max(asked.values())} actors are asked for, so that {fleet.count - max(asked.values())} of {fleet.count} devices wait; "
            "set cluster.corpus_actors, generate_actors and score_actors to the number of GPUs"
        )
    if experiment.cluster.threads > 1:
        notes.append("threads: the rates are of one thread a process; more threads are not reckoned with")
    if any(amounts.is_scratch(family) for family in amounts.families):
        notes.append(
            "models: pre-training is planned as on first use; later runs find the models in the cache"
        )
    if fleet.gpu and fleet.rates.kind != BASELINE.partition(":")[0]:
        notes.append(
            f"baseline: {fleet.rates.kind} is another device than {BASELINE}, so that the speed-up is of both, their number and their "
            "kind, and an efficiency above 100 % is no mistake"
        )
    return notes


def _fleet_problems(experiment: Experiment, fleet: Fleet) -> list[str]:
    cluster, found = experiment.cluster, []
    if cluster.workers_per_cell > fleet.count:
        found.append(
            f"cluster.workers_per_cell = {cluster.workers_per_cell}: a cell waits for as many devices at once, the fleet has "
            f"{fleet.count}; set it to {fleet.count} or less"
        )
    share = cluster.gpus_per_actor if fleet.gpu else cluster.cpus_per_actor
    if share is not None and share > fleet.count:
        name = "gpus_per_actor" if fleet.gpu else "cpus_per_actor"
        found.append(
            f"cluster.{name} = {share:g}: an actor waits for as many devices at once, the fleet has {fleet.count}; set it to {fleet.count} or less"
        )
    for name in ("toxic", "finetune"):
        rows = getattr(experiment, name).batch_size
        if rows % cluster.workers_per_cell:
            found.append(
                f"{name}.batch_size = {rows} does not divide over cluster.workers_per_cell = {cluster.workers_per_cell}; use a multiple"
            )
    return found


def _advise(made: Plan, experiment: Experiment, fleet: Fleet) -> None:
    """A line per kind of cell that does not fit, with the settings that make it fit, found by planning with them."""
    failing = [cell for cell in made.cells if not cell.fits]
    for stage in dict.fromkeys(cell.cell.stage for cell in failing):
        mine = [cell for cell in failing if cell.cell.stage == stage]
        worst = max(mine, key=lambda cell: cell.peak)
        found = remedies.remedy(experiment, fleet, stage, [cell.cell for cell in mine])
        names = ", ".join(cell.cell.name for cell in mine[:4]) + (
            f" and {len(mine) - 4} more" if len(mine) > 4 else ""
        )
        said = (
            f"makes it fit: {found}"
            if found
            else "no setting of the experiment makes it fit; take devices with more memory"
        )
        made.problems.append(f"{stage}: {names}: {worst.why}; {said}")
        made.cells = [
            dataclasses.replace(cell, remedy=found) if cell in mine else cell for cell in made.cells
        ]


def _baseline(made: Plan, amounts: Amounts, table: dict[str, Any] | None) -> None:
    """The same experiment on one A100, one thing at a time."""
    try:
        alone = amounts.on(**_ALONE)
        base = plan(alone.experiment, devices.parse(BASELINE, table), advise=False, amounts=alone)
    except UnidetoxError as error:
        made.baseline_why = str(error)
        return
    failing = next((cell for cell in base.cells if not cell.fits), None)
    if failing is not None or base.problems:
        why = f"{failing.cell.stage} {failing.cell.name} {failing.why}" if failing else base.problems[0]
        made.baseline_why = f"the experiment as it is does not fit one A100 80 GB ({why})"
        return
    made.baseline = base.seconds
