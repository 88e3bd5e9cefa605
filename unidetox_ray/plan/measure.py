"""This machine's own entry of the rates: limits, benchmarks at two sizes, and how long Ray's processes take to start.

`unidetox plan --measure` makes a whole entry; `unidetox bench … --save-rates FILE` adds one measurement to an entry.
Everything that runs beside it makes the machine look slower than it is.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import private_folder, write_json
from unidetox_ray.bench.options import Options
from unidetox_ray.bench.result import BenchResult
from unidetox_ray.errors import ConfigError
from unidetox_ray.plan import devices, durations
from unidetox_ray.plan.shapes import of_config

#: What is run: (benchmark, options). Small models show what a layer costs, large ones the arithmetic.
_CPU: tuple[tuple[str, dict[str, Any]], ...] = (
    ("finetune", {"size": "tiny"}),
    ("finetune", {"size": "gpt2", "batch": 2, "tokens": 64, "texts": 4}),
    ("generate", {"size": "tiny", "batch": 512, "texts": 64}),
    ("decode", {"size": "gpt2", "texts": 16, "tokens": 16}),
    ("score", {"size": "tiny", "kind": "perplexity"}),
    ("score", {"size": "gpt2", "kind": "perplexity", "texts": 20}),
    ("score", {"size": "tiny", "kind": "toxicity", "texts": 1000}),
    ("score", {"size": "gpt2", "kind": "toxicity", "texts": 60}),
)  # fmt: skip
_GPU: tuple[tuple[str, dict[str, Any]], ...] = (
    ("finetune", {"size": "gpt2"}), ("finetune", {"size": "gpt2-xl"}), ("generate", {"size": "gpt2-xl"}),
    ("decode", {"size": "gpt2-xl", "batch": 128, "texts": 128}), ("decode", {"size": "gpt2-xl", "batch": 256, "texts": 256}),
    ("score", {"size": "gpt2-xl", "kind": "perplexity"}), ("score", {"size": "gpt2", "kind": "toxicity"}),
)  # fmt: skip
_WORK_OF = {"finetune": "train", "decode": "decode", "generate": "decode"}
#: Shares of a training group's start that every group waits for alone, and that groups on the same cores wait for one another.
_ALONE = 0.45
_DISK = 64 << 20


@dataclass(frozen=True)
class Entry:
    """values: as `rates.json` has them."""

    kind: str
    values: dict[str, Any]

    def told(self) -> str:
        """A few lines for the console."""
        rates = devices.rates_of(self.kind, {"kinds": {self.kind: self.values}})
        lines = [
            f"{self.kind}: {rates.title}",
            f"matrix products: fp32 {rates.matmul['fp32'] / 1e12:.3g}, bf16 {rates.matmul['bf16'] / 1e12:.3g} TFLOP/s",
        ]
        for name, fit in rates.fits.items():
            parts = ", ".join(f"{feature} {value:.3g}" for feature, value in fit.coefficients.items())
            lines.append(f"{name}: {parts} (fits its measurements within {100 * fit.error:.0f} %)")
        lines.append("host: " + ", ".join(f"{name} {value:.3g}" for name, value in rates.host.items()))
        return "\n".join(lines)


def measured(table: Mapping[str, Any], display: Any, *, host: bool = True) -> Entry:
    """Measure this machine. host: start Ray as well. The entry keeps what cannot be measured here from the table's."""
    import torch

    on_gpu = torch.cuda.is_available()
    kind, values = _begun(table)
    names, done = (_GPU if on_gpu else _CPU), 0
    work: dict[str, dict[str, Any]] = {
        name: {"coefficients": part["coefficients"], "points": []}
        for name, part in _work(table, kind).items()
    }
    before = torch.get_num_threads()
    with display.task("measuring rates", "benchmarks") as advance:
        if not on_gpu:
            torch.set_num_threads(1)
        try:
            values["matmul_tflops"], values["bandwidth_gb_s"] = _limits()
            for name, options in names:
                advance(done, len(names))
                result = _bench(name, options, on_gpu)
                where, point = point_of(result)
                work[where]["points"].append(point)
                done += 1
            advance(done, len(names))
        finally:
            torch.set_num_threads(before)
    values["work"] = work
    if host:
        with display.task("measuring start-up", "steps") as advance:
            values["host"] = {**values["host"], **_host(advance, on_gpu)}
    today = time.strftime("%Y-%m-%d")
    values["sources"] = {
        "matmul_tflops": f"measured here, {today}", "bandwidth_gb_s": f"measured here, {today}",
        **{f"work.{name}": f"benchmarks here, {today}" for name in work},
        "host": f"start-up and disk measured here, {today}; order_seconds, sequence_seconds, character_seconds, report_seconds, "
        "shared_read_bytes as in the table" if host else "as in the table",
    }  # fmt: skip
    return Entry(kind, values)


def savable(name: str, options: Options) -> None:
    """ConfigError, before anything runs, for a benchmark that measures no rate or would use several threads of a CPU."""
    import torch

    if name == "pipeline":
        raise ConfigError(
            "--save-rates: `bench pipeline` measures no rate; take decode, generate, score or finetune"
        )
    on_cpu = options.device == "cpu" or (options.device is None and not torch.cuda.is_available())
    if on_cpu and options.threads != 1:
        raise ConfigError("--save-rates: rates are of one thread a process; add --threads 1")


def add(path: Path, result: BenchResult) -> str:
    """Put one benchmark's measurement into the file's entry of this machine, in the place of an older one of the same work;
    returns the kind."""
    table = devices.read_table(path) if path.exists() else devices.stored()
    kind, values = _begun(table)
    where, point = point_of(result)
    values["work"] = json.loads(json.dumps(_work(table, kind)))
    old = values["work"][where].get("points", [])
    values["work"][where]["points"] = [each for each in old if each.get("name") != point["name"]] + [point]
    save(path, Entry(kind, values))
    return kind


def save(path: Path, entry: Entry) -> None:
    """The entry into the file, beside those of other kinds that it has."""
    kinds = {}
    if path.exists():
        devices.read_table(path)  # refused here where it is none of ours
        kinds = json.loads(path.read_text(encoding="utf-8"))["kinds"]
    try:
        write_json(path, {"schema": devices.SCHEMA, "kinds": {**kinds, entry.kind: entry.values}})
    except OSError as error:
        raise ConfigError(
            f"--save-rates: {path} cannot be written ({error.strerror or error}); give a file in a folder you own"
        ) from None


def point_of(result: BenchResult) -> tuple[str, dict[str, Any]]:
    """(kind of work, measurement) of a benchmark's record."""
    from unidetox_ray.bench.shapes import causal_config

    extra, precision = result.extra, result.dtype
    size = str(extra["size"])
    batch = int(result.batch or 1)
    point: dict[str, Any] = {
        "precision": precision,
        "seconds": result.seconds,
        "source": f"`unidetox bench {result.name}`",
    }
    if result.name == "score":
        kind = str(extra["kind"])
        items = int(extra["texts"]) if "texts" in extra else 4 * int(extra["questions"])
        name = f"score {kind} {size}, {items} texts"
        return "classify" if kind == "toxicity" else "read", {
            **point, "name": name, "operations": extra["needs_gflop"] * 1e9, "texts": items,
        }  # fmt: skip
    model = of_config(causal_config(size), size)
    if result.name == "finetune":
        steps, length = int(extra["steps"]), int(extra["row_tokens"])
        return "train", {
            **point, "name": f"finetune {size}, {batch} x {length} tokens", "operations": 6.0 * model.matrix * batch * length,
            "layers": model.layers, "seconds": result.seconds / steps,
        }  # fmt: skip
    pair = result.name == "decode"
    copies = 1 if pair else int(extra["copies"])
    sequences = int(extra["texts"]) if pair else int(extra["prompts"]) * copies
    tokens = extra["new_tokens"] / sequences
    operations, bytes_, counts = durations.decoding_work(
        [model] * (2 if pair else 1), precision, sequences=sequences, rows=batch, prompt=1.0 if pair else 22.5, mean=tokens, most=tokens,
        copies=copies, nucleus=not pair,
    )  # fmt: skip
    return "decode", {
        **point, "name": f"{result.name} {size}, {sequences} x {tokens:g} tokens", "operations": operations, "bytes": bytes_, **counts,
    }  # fmt: skip


def _begun(table: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of this machine's devices and a copy of its entry, or a new one for a GPU that the table does not know."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", json.loads(json.dumps(table["kinds"]["cpu"]))
    properties = torch.cuda.get_device_properties(0)
    gib = properties.total_memory / 2**30
    kind = devices.kind_named(properties.name, gib, table)
    if kind is not None:
        found = json.loads(json.dumps(table["kinds"][kind]))
        like = found.pop("like", None)
        host = {**(table["kinds"][like]["host"] if like else {}), **found.get("host", {})}
        return kind, {**found, "host": host}
    name = "-".join(properties.name.lower().replace("nvidia", "").split()) + f"-{round(gib)}"
    base = json.loads(json.dumps(table["kinds"]["h200"]))
    return name, {
        **base,
        "title": properties.name,
        "memory_gib": round(gib, 1),
        "per_node": torch.cuda.device_count(),
    }


def _work(table: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The kinds of work of an entry, or those of the one it is like."""
    entry = table["kinds"].get(kind) or table["kinds"]["h200"]
    return {**(table["kinds"][entry["like"]]["work"] if "like" in entry else {}), **entry.get("work", {})}


def _limits() -> tuple[dict[str, float], float]:
    """(operations a second by precision in 1e12, bytes a second in 1e9), with the threads of now."""
    import torch

    from unidetox_ray.bench.limits import limits_of
    from unidetox_ray.core.flops import peak_flops

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    products = {
        name: peak_flops(device, getattr(torch, dtype)) / 1e12
        for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
    }
    bandwidth = limits_of(device, torch.bfloat16 if device.type == "cuda" else torch.float32).bandwidth
    return {name: float(f"{value:.4g}") for name, value in products.items()}, float(f"{bandwidth / 1e9:.4g}")


def _bench(name: str, options: Mapping[str, Any], on_gpu: bool) -> BenchResult:
    from unidetox_ray.bench.verb import bench

    threads = None if on_gpu else 1
    return bench(name, Options(**options, plain=False, threads=threads, repeats=3, patience=10.0))


def _host(advance: Any, on_gpu: bool) -> dict[str, float]:
    """Seconds until Ray, a pool of actors and a training group have begun their work, and the disk's rates."""
    from unidetox_ray.artifacts import RunFolder
    from unidetox_ray.config import resolve
    from unidetox_ray.settings import ModelRef
    from unidetox_ray.stages import models, orders, toxic, training
    from unidetox_ray.stages.context import Context

    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory(prefix="unidetox-rates-") as place:
        root = Path(place)
        folder = _small_model(root / "model")
        experiment = resolve(
            {
                "name": "rates", "base_family": "gpt2", "families": ["gpt2"], "methods": ["base"], "storage": place,
                "models": {"gpt2": str(folder)}, "data": {"toxic": "world", "prompts": "world", "mmlu": "world"},
                "toxic": {"steps": 2, "batch_size": 2, "max_length": 32}, "tracking": {"uri": "none"},
            }
        )  # fmt: skip
        context = Context(experiment, RunFolder(root, "rates"))
        try:
            advance(0, 3)
            started = time.perf_counter()
            context.connect()
            ray = time.perf_counter() - started
            advance(1, 3)
            actors = max(1, min(2, int(context.devices)))
            made = [{"id": f"order-{index}", "rows": 1} for index in range(actors)]
            started = time.perf_counter()
            orders.fulfil(
                Idle,
                {"model": str(folder)},
                made,
                private_folder(root / "pool"),
                actors=actors,
                context=context,
            )
            pool = time.perf_counter() - started
            advance(2, 3)
            job = toxic.toxic_job(context, "gpt2", models.handle_of(ModelRef(source=str(folder)), "gpt2"))
            started = time.perf_counter()
            (outcome,) = training.run_group("rates", [job], experiment.cluster, root / "ray")
            group = time.perf_counter() - started
            if outcome.manifest is None:
                raise ConfigError(f"plan --measure: a training of two steps failed ({outcome.error})")
            group -= float(outcome.manifest.extra["train_seconds"])
            advance(3, 3)
        finally:
            context.close()
        write, read = _disk(root)
    found = {
        "ray_seconds": ray, "pool_seconds": pool, "trial_seconds": pool, "task_seconds": pool / 2,
        "group_seconds": _ALONE * group, "group_cpu_seconds": (1 - _ALONE) * group, "write_bytes": write, "read_bytes": read,
    }  # fmt: skip
    return {name: float(f"{value:.4g}") for name, value in found.items()}


class Idle:
    """A worker of a pool that only gets ready, as the stages' own do."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from unidetox_ray.families.loading import load_model, load_tokenizer
        from unidetox_ray.stages.cluster import prepare_process

        device = prepare_process(1)
        self.tokenizer = load_tokenizer(settings["model"])
        self.model = load_model(settings["model"], dtype="float32", device=device)

    def work(self, order: dict[str, Any]) -> Any:
        import polars as pl

        return pl.DataFrame({"id": [order["id"]]})


def _small_model(folder: Path) -> Path:
    """A GPT-2 of a few weights, with a tokenizer, as a folder."""
    from unidetox_ray import registry
    from unidetox_ray.data.base import load
    from unidetox_ray.families.scratch import build_model
    from unidetox_ray.families.tokenizers import train_tokenizer
    from unidetox_ray.settings import ScratchSection

    family = registry.lookup("families", "gpt2")
    texts = load("pretrain", dataset="world").table["text"].head(200).to_list()
    tokenizer = train_tokenizer(family, texts, 400)
    build_model(family, tokenizer, ScratchSection(hidden=32, layers=1, heads=2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _disk(folder: Path) -> tuple[float, float]:
    """Bytes a second written (synced) and read, the latter from the system's cache at best."""
    path, block = folder / "block", os.urandom(1 << 20)
    started = time.perf_counter()
    with path.open("wb") as stream:
        for _ in range(_DISK // len(block)):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    wrote = time.perf_counter() - started
    started = time.perf_counter()
    path.read_bytes()
    return _DISK / wrote, _DISK / max(time.perf_counter() - started, 1e-6)
