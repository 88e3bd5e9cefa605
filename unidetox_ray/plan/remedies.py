"""Settings that make what does not fit fit. Each is tried: the plan is made again with it, and only what then fits is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unidetox_ray.config import Experiment, resolve
from unidetox_ray.errors import UnidetoxError
from unidetox_ray.plan.devices import Fleet
from unidetox_ray.plan.engine import Cell

#: Remedies that are told, of all that were found.
_TOLD = 2


def remedy(experiment: Experiment, fleet: Fleet, stage: str, failing: Sequence[Cell]) -> str:
    """`key=value key=value`, alternatives joined by "or"; "" where none was found. Those that change no result come first."""
    found: list[tuple[list[str], set[str]]] = []
    for settings in _candidates(experiment, fleet, stage):
        if len(found) == _TOLD:
            break
        keys = {setting.partition("=")[0] for setting in settings}
        if any(keys == others or set(one) <= set(settings) for one, others in found):
            continue  # another value of the same settings, or a smaller change, does it already
        if _fits(experiment, settings, fleet, failing):
            found.append((settings, keys))
    return " or ".join(" ".join(settings) for settings, _ in found)


def _fits(experiment: Experiment, settings: Sequence[str], fleet: Fleet, failing: Sequence[Cell]) -> bool:
    from unidetox_ray.plan.planning import plan

    try:
        changed = resolve(experiment.model_dump(mode="json"), settings)
        made = plan(changed, fleet, advise=False)
    except (UnidetoxError, ValueError):
        return False  # a setting that this experiment does not take
    if made.problems:
        return False
    wanted = {(cell.stage, cell.family, cell.method.partition(" ")[0]) for cell in failing}
    return all(
        each.fits
        for each in made.cells
        if (each.cell.stage, each.cell.family, each.cell.method.partition(" ")[0]) in wanted
    )


def _candidates(experiment: Experiment, fleet: Fleet, stage: str) -> Iterator[list[str]]:
    """From the gentlest to the one that changes most."""
    if stage in ("toxic", "finetune", "search", "tune"):
        yield from _of_training(experiment, fleet, "toxic" if stage == "toxic" else "finetune")
    if stage in ("generate", "score", "tune", "fits"):
        yield ["cluster.decode_rows=64"]
        if experiment.cluster.score_tokens > 4096:
            yield ["cluster.score_tokens=4096"]
        precisions = [
            f"evaluate.{name}=bf16"
            for name in ("precision", "ppl_precision")
            if getattr(experiment.evaluate, name) == "fp32"
        ]
        for one in precisions:
            yield [one]
        if len(precisions) == 2:
            yield precisions
            yield [*precisions, "cluster.score_tokens=4096"]
        if experiment.evaluate.ppl_model not in (None, experiment.base_family):
            yield [f"evaluate.ppl_model={experiment.base_family}"]
            yield [*precisions, f"evaluate.ppl_model={experiment.base_family}", "cluster.score_tokens=4096"]
        if stage == "score":
            yield [*precisions, "evaluate.ppl_model=null", "cluster.score_tokens=4096"]
    if stage == "corpus" and experiment.corpus.precision == "fp32":
        yield ["corpus.precision=bf16"]


def _of_training(experiment: Experiment, fleet: Fleet, section: str) -> Iterator[list[str]]:
    settings = getattr(experiment, section)
    batch, precision = settings.batch_size, settings.precision
    worlds = [
        w
        for w in (2, 4, 8, 16)
        if w <= fleet.count and not any(getattr(experiment, s).batch_size % w for s in ("toxic", "finetune"))
    ]
    stages = [stage for stage in (1, 2, 3) if stage > settings.deepspeed.stage]
    # The same result: weights, gradients and moments over more devices, moments in the machine's memory.
    for world in worlds:
        for stage in stages:
            yield [f"{section}.deepspeed.stage={stage}", f"cluster.workers_per_cell={world}"]
    if precision != "bf16_pure" and settings.deepspeed.offload == "none":
        stage = max(1, settings.deepspeed.stage)
        yield [f"{section}.deepspeed.stage={stage}", f"{section}.deepspeed.offload=optimizer"]
        for world in worlds[-1:]:
            yield [
                f"{section}.deepspeed.stage=3",
                f"{section}.deepspeed.offload=optimizer",
                f"cluster.workers_per_cell={world}",
            ]
    at_once = (settings.micro_batch or batch) // 2
    while at_once >= 1:
        yield [f"{section}.micro_batch={at_once}"]
        at_once //= 2
    # Other arithmetic, other weights trained, other batches.
    for other in ("bf16_master", "bf16_pure"):
        if other != precision and precision != "bf16_pure":
            offload = (
                [f"{section}.deepspeed.offload=none"]
                if other == "bf16_pure" and settings.deepspeed.offload != "none"
                else []
            )
            yield [f"{section}.precision={other}", *offload]
    if section == "finetune" and settings.adapter == "none":
        yield ["finetune.adapter=lora"]
        if precision != "bf16_pure":
            yield ["finetune.adapter=lora", "finetune.precision=bf16_pure", "finetune.deepspeed.offload=none"]
    smaller = batch // 2
    while smaller >= 1:
        yield [f"{section}.batch_size={smaller}"]
        smaller //= 2
    if settings.max_length > 64:
        yield [f"{section}.batch_size=1", f"{section}.max_length={settings.max_length // 2}"]
    for world in worlds[-1:]:
        yield [
            f"{section}.precision=bf16_pure",
            f"{section}.deepspeed.stage=3",
            f"cluster.workers_per_cell={world}",
        ]
    if section == "finetune":
        yield ["finetune.adapter=lora", "finetune.precision=bf16_pure", "finetune.batch_size=1"]
