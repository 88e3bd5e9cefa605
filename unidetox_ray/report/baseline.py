"""What a run took, as portable JSON, and one run beside another: speed-up, efficiency, cost.

    portable(run)  stages.json and config.yaml → {"schema": 1, "kind": "unidetox-baseline", …}
    read(place)    a run folder or such a file → Costs
    compared       two Costs → Comparison, refused where the two did not do the same work

Runs are compared where everything that can change a result is equal, or where all that differs changes no amount of work
(`SAME_WORK`): that is said beside the numbers. Anything else is a ConfigError that names what differs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import code_version, read_json, write_json
from unidetox_ray.config import Experiment, load
from unidetox_ray.errors import ArtifactError, ConfigError

SCHEMA, KIND = 1, "unidetox-baseline"
#: Settings whose values differ between runs of the same amount of work: names, seeds, and how texts are dealt out.
SAME_WORK = (
    "name",
    "seed",
    "seeds",
    "corpus.shard_size",
    "corpus.seed",
    "toxic.seed",
    "evaluate.seed",
    "evaluate.bootstrap",
)
#: Differences that are named.
_TOLD = 4
#: More than a file of ours ever has.
_LARGEST = 4 << 20


@dataclass(frozen=True)
class StageCost:
    """seconds: wall clock. device_seconds: of GPUs held, or CPUs where the cluster had none. None: no run left the number.

    partial: some of the work was found finished, so that the numbers are of a part of it.
    """

    stage: str
    seconds: float | None
    device_seconds: float | None
    tokens: float | None
    partial: bool = False


@dataclass(frozen=True)
class Costs:
    """Of one run. settings: all that can change a result, flat. devices: of its cluster, at most; device: gpu or cpu."""

    name: str
    key: str
    limit: int | None
    settings: Mapping[str, Any]
    stages: tuple[StageCost, ...]
    device: str
    devices: float
    accelerator: str | None
    created: str
    code: Mapping[str, str]
    where: str

    @property
    def seconds(self) -> float | None:
        """Of all stages; None where one's is not known."""
        known = [stage.seconds for stage in self.stages]
        return None if not known or None in known else float(sum(each for each in known if each is not None))


@dataclass(frozen=True)
class Line:
    """A stage, or all of them, on both sides. speedup and efficiency: None where a number lacks or is of a part of the work."""

    stage: str
    base: StageCost | None
    run: StageCost | None
    speedup: float | None
    efficiency: float | None
    base_cost: float | None
    run_cost: float | None


@dataclass(frozen=True)
class Comparison:
    """base, run: what was compared. remarks: what a reader must know, one line each."""

    base: Costs
    run: Costs
    lines: tuple[Line, ...]
    total: Line
    remarks: tuple[str, ...]
    price: float | None
    base_price: float | None


def costs_of_run(run_dir: Path) -> Costs:
    """ArtifactError where the folder holds no run or one whose stages left no times."""
    if not (run_dir / "config.yaml").is_file():
        raise ArtifactError(
            f"{run_dir}: holds no config.yaml; give the folder of a run, such as outputs/tiny, or a baseline file"
        )
    if not (run_dir / "stages.json").is_file():
        raise ArtifactError(f"{run_dir}: holds no stages.json, so no stage of it has finished; run it first")
    experiment = load(run_dir / "config.yaml")
    rows = read_json(run_dir / "stages.json")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "stage" in row for row in rows):
        raise ArtifactError(f"{run_dir / 'stages.json'}: is no list of stages; run the same command again")
    # A stage that a run meets twice, as fits for the tuning and for the cells, made its work once.
    once: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        place = (str(row["stage"]), str(row.get("key")))
        once[place] = once.get(place) or row.get("spent") or {}
    spents = list(once.values())
    stages: dict[str, StageCost] = {}
    for (name, _), spent in once.items():
        known = stages.get(name)
        made = StageCost(
            name,
            _real(spent.get("seconds")),
            _real(spent.get("device_seconds")),
            _real(spent.get("tokens")),
            bool(spent.get("partial")),
        )
        stages[name] = made if known is None else _sum(name, [known, made])
    device = "gpu" if any(spent.get("device") == "gpu" for spent in spents) else "cpu"
    manifests = sorted((run_dir / "stages").glob("*/manifest.json")) + sorted(
        (run_dir / "models").glob("*/manifest.json")
    )
    dates = [str(read_json(path).get("created", "")) for path in manifests]
    return Costs(
        name=experiment.name, key=experiment.key, limit=experiment.limit, settings=_settings(experiment), stages=tuple(stages.values()),
        device=device, devices=max((_real(spent.get("cluster_devices")) or 0.0 for spent in spents), default=0.0),
        accelerator=next((str(spent["accelerator"]) for spent in spents if spent.get("accelerator")), None),
        created=max(dates, default=""), code=code_version(), where=run_dir.name,
    )  # fmt: skip


def portable(costs: Costs) -> dict[str, Any]:
    """As JSON that names no place of this machine."""
    return {
        "schema": SCHEMA, "kind": KIND, "name": costs.name, "key": costs.key, "limit": costs.limit,
        "settings": dict(costs.settings), "device": costs.device, "devices": costs.devices, "accelerator": costs.accelerator,
        "created": costs.created, "written": datetime.now(UTC).isoformat(timespec="seconds"), "code": dict(costs.code),
        "stages": [
            {
                "stage": each.stage, "seconds": each.seconds, "device_seconds": each.device_seconds, "tokens": each.tokens,
                "partial": each.partial,
            }
            for each in costs.stages
        ],
        "seconds": costs.seconds,
    }  # fmt: skip


def save(run_dir: Path, target: Path) -> Path:
    """Write the run's costs as a portable file; ConfigError where it cannot be written."""
    value = portable(costs_of_run(run_dir))
    try:
        write_json(target, value)
    except OSError as error:
        raise ConfigError(
            f"--save-baseline: {target} cannot be written ({error.strerror or error}); give a file in a folder you own"
        ) from None
    return target


def read(place: Path) -> Costs:
    """The costs of a run folder or of a file that `save` wrote. ArtifactError, one line, for anything else."""
    if place.is_dir():
        return costs_of_run(place)
    if not place.exists():
        raise ArtifactError(
            f"{place}: no such run folder or file; write one with `unidetox report RUN --save-baseline FILE.json`"
        )
    try:
        if place.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        value = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{place}: is no baseline file ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise ArtifactError(
            f"{place}: is no baseline file; write one with `unidetox report RUN --save-baseline FILE.json`"
        )
    if value.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{place}: is a baseline of schema {value.get('schema')!r}, this version reads {SCHEMA}; write it again"
        )
    try:
        stages = tuple(
            StageCost(
                str(row["stage"]),
                _real(row["seconds"]),
                _real(row["device_seconds"]),
                _real(row.get("tokens")),
                bool(row.get("partial")),
            )
            for row in value["stages"]
        )
        return Costs(
            name=str(value["name"]), key=str(value["key"]), limit=value.get("limit"), settings=dict(value["settings"]), stages=stages,
            device=str(value["device"]), devices=float(value["devices"]), accelerator=value.get("accelerator"),
            created=str(value.get("created", "")), code=dict(value.get("code", {})), where=place.name,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{place}: the baseline is damaged ({type(error).__name__}: {error}); write it again"
        ) from None


def compared(
    run: Costs, base: Costs, *, price: float | None = None, base_price: float | None = None
) -> Comparison:
    """Both side by side. price: of a device-hour of the run; base_price: of the baseline's, None = the same.

    ConfigError where the two did not do the same work.
    """
    remarks = _same_work(run, base)
    if run.device != base.device or (run.accelerator or "") != (base.accelerator or ""):
        remarks.append(
            f"other devices: {_device(base)} against {_device(run)}; the speed-up is of both, devices and their number"
        )
    base_price = price if base_price is None else base_price
    theirs, ours = ({each.stage: each for each in costs.stages} for costs in (base, run))
    names = list(dict.fromkeys([*theirs, *ours]))
    lines = tuple(
        _line(name, theirs.get(name), ours.get(name), run, base, price, base_price) for name in names
    )
    summed = [line for line in lines if line.speedup is not None]
    remarks += _left_out(lines, base, run)
    sides = [
        [each for each in part if each is not None]
        for part in zip(*((x.base, x.run) for x in summed), strict=True)
    ]
    whole = [_sum("all stages", part) for part in sides] if summed else [None, None]
    total = _line("all stages", whole[0], whole[1], run, base, price, base_price)
    return Comparison(base, run, lines, total, tuple(remarks), price, base_price)


def _left_out(lines: tuple[Line, ...], base: Costs, run: Costs) -> list[str]:
    """Which stages the sum leaves out, and why."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.speedup is not None:
            continue
        if line.base is None or line.run is None:
            why = f"only {'this run' if line.base is None else 'the baseline'} has it"
        elif line.base.partial or line.run.partial:
            side = "the baseline" if line.base.partial else "this run"
            why = f"{side} found part of its work finished, so that its time is of the rest"
        else:
            side = "the baseline" if not line.base.seconds else "this run"
            why = f"{side} has no time for it: an earlier version made it, or its work was in the cache"
        found.setdefault(why, []).append(line.stage)
    return [f"left out of the sum: {', '.join(names)}: {why}" for why, names in found.items()]


def _line(
    name: str, theirs: StageCost | None, ours: StageCost | None, run: Costs, base: Costs, price: float | None, base_price: float | None
) -> Line:  # fmt: skip
    speedup = efficiency = None
    known = theirs is not None and ours is not None and not (theirs.partial or ours.partial)
    if known and theirs is not None and ours is not None and theirs.seconds and ours.seconds:
        speedup = theirs.seconds / ours.seconds
        if run.device == base.device and run.devices and base.devices:
            efficiency = speedup / (run.devices / base.devices)
    return Line(
        name, theirs, ours, speedup, efficiency, _cost(theirs, base, base_price), _cost(ours, run, price)
    )


def _cost(stage: StageCost | None, costs: Costs, price: float | None) -> float | None:
    """Of all devices of the cluster for the time: what is rented is paid whether it works or not."""
    if stage is None or stage.seconds is None or price is None or not costs.devices:
        return None
    return price * costs.devices * stage.seconds / 3600.0


def _sum(name: str, parts: list[StageCost]) -> StageCost:
    def total(values: list[float | None]) -> float | None:
        return None if None in values else float(sum(each for each in values if each is not None))

    return StageCost(
        name, total([p.seconds for p in parts]), total([p.device_seconds for p in parts]), total([p.tokens for p in parts]),
        any(p.partial for p in parts),
    )  # fmt: skip


def _device(costs: Costs) -> str:
    return f"{costs.devices:g} x {costs.accelerator or costs.device}"


def _same_work(run: Costs, base: Costs) -> list[str]:
    """Remarks on what differs and changes no amount of work; ConfigError for what does."""
    if run.key == base.key:
        return []
    differing = sorted(
        name
        for name in {*run.settings, *base.settings}
        if run.settings.get(name, "absent") != base.settings.get(name, "absent")
    )
    work = [name for name in differing if name not in SAME_WORK and not name.startswith("seeds[")]
    if max(1, _length(run.settings, "seeds[")) != max(1, _length(base.settings, "seeds[")):
        work.append("seeds")
    if not work and not differing:
        raise ConfigError(
            f"--baseline {base.where}: was made by another experiment than {run.where} (keys {base.key[:12]} and {run.key[:12]}); compare runs of one experiment"
        )
    if work:
        told = ", ".join(
            f"{name} = {_shown(base.settings, name)} there and {_shown(run.settings, name)} here"
            for name in work[:_TOLD]
        )
        more = f" and {len(work) - _TOLD} more" if len(work) > _TOLD else ""
        raise ConfigError(
            f"--baseline {base.where}: another amount of work than {run.where}: {told}{more}; compare runs of one experiment"
        )
    return [
        f"other experiment, same amount of work: {', '.join(differing)} differ{'s' if len(differing) == 1 else ''}"
    ]


def _length(settings: Mapping[str, Any], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in settings)


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return str(settings.get(name, "not set"))[:60]


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Everything that can change a result, flat; of a place on this machine only its last part."""
    found: dict[str, Any] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{place}.{name}" if place else str(name))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(inner, f"{place}[{index}]")
        elif isinstance(value, str) and (
            value.startswith(("/", "~", ".", "\\")) or value[1:3] == ":\\" or "://" in value
        ):
            found[place] = f"…/{value.replace(chr(92), '/').rstrip('/').rpartition('/')[2]}"
        else:
            found[place] = value

    walk(experiment.hashed(), "")
    return found


def _real(value: Any) -> float | None:
    usable = (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )
    return float(value) if usable else None
