"""This machine's own entry of the rates: limits, benchmarks at two sizes, and how long Ray's processes take to start.

`unidetox plan --measure` makes a whole entry; `unidetox bench … --save-rates FILE` adds one measurement to an entry.
Everything that runs beside it makes the machine look slower than it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import write_json
from unidetox_ray.bench.options import Options
from unidetox_ray.bench.result import BenchResult
from unidetox_ray.errors import ConfigError
from unidetox_ray.plan import devices, durations
from unidetox_ray.plan.shapes import of_config
from unidetox_ray.plan.start_up import start_up

#: What is run: (benchmark, options). Small models show what a layer costs, large ones the arithmetic.
_CPU: tuple[tuple[str, dict[str, Any]], ...] = (
    ("finetune", {"size": "tiny"}),
    ("finetune", {"size": "tiny", "batch": 16, "tokens": 128, "texts": 160}),
    ("finetune", {"size": "gpt2", "batch": 2, "tokens": 64, "texts": 4}),
    ("generate", {"size": "tiny", "batch": 512, "texts": 64}),
    ("generate", {"size": "gpt2", "batch": 50, "texts": 2}),
    ("decode", {"size": "gpt2", "texts": 16, "tokens": 16}),
    ("score", {"size": "tiny", "kind": "perplexity", "texts": 4000}),
    ("score", {"size": "gpt2", "kind": "perplexity", "texts": 20}),
    ("score", {"size": "tiny", "kind": "toxicity", "texts": 4000}),
    ("score", {"size": "gpt2", "kind": "toxicity", "texts": 60}),
)  # fmt: skip
_GPU: tuple[tuple[str, dict[str, Any]], ...] = (
    ("finetune", {"size": "gpt2"}), ("finetune", {"size": "gpt2-xl"}), ("generate", {"size": "gpt2-xl"}),
    ("decode", {"size": "gpt2-xl", "batch": 128, "texts": 128}), ("decode", {"size": "gpt2-xl", "batch": 256, "texts": 256}),
    ("score", {"size": "gpt2-xl", "kind": "perplexity"}), ("score", {"size": "gpt2", "kind": "toxicity"}),
)  # fmt: skip
_WORK_OF = {"finetune": "train", "decode": "decode", "generate": "decode"}


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
    work = _begin_again(table, kind)
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
            values["host"] = {**values["host"], **start_up(advance)}
    today = time.strftime("%Y-%m-%d")
    values["sources"] = {
        "matmul_tflops": f"measured here, {today}", "bandwidth_gb_s": f"measured here, {today}",
        **{f"work.{name}": f"benchmarks here, {today}" for name in work},
        "host": f"start-up and disk measured here, {today}; order_seconds, sequence_seconds, report_seconds, "
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
    returns the kind. An entry begins with the shipped one's proportions and none of its measurements, which are another machine's."""
    table = devices.read_table(path) if path.exists() else devices.stored()
    kind, values = _begun(table)
    where, point = point_of(result)
    values["work"] = (
        json.loads(json.dumps(_work(table, kind))) if kind in _kept(path) else _begin_again(table, kind)
    )
    old = values["work"][where].get("points", [])
    values["work"][where]["points"] = [each for each in old if each.get("name") != point["name"]] + [point]
    save(path, Entry(kind, values))
    return kind


def save(path: Path, entry: Entry) -> None:
    """The entry into the file, beside those of other kinds that it has."""
    if path.exists():
        devices.read_table(path)  # refused here where it is none of ours
    try:
        write_json(path, {"schema": devices.SCHEMA, "kinds": {**_kept(path), entry.kind: entry.values}})
    except OSError as error:
        raise ConfigError(
            f"--save-rates: {path} cannot be written ({error.strerror or error}); give a file in a folder you own"
        ) from None


def _kept(path: Path) -> dict[str, Any]:
    """The entries of a file of one's own; none where there is no file yet."""
    return dict(json.loads(path.read_text(encoding="utf-8"))["kinds"]) if path.exists() else {}


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


def _begin_again(table: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """An entry's kinds of work without its points: what a few new ones leave open stays in the proportions that the many before
    them have found."""
    fits = devices.rates_of(kind if kind in table["kinds"] else "h200", table).fits
    return {
        name: {
            "coefficients": {
                each: fits[name].coefficients.get(each) or known
                for each, known in part["coefficients"].items()
            },
            "points": [],
        }
        for name, part in _work(table, kind).items()
    }


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
