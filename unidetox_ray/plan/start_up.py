"""How long Ray's processes take to begin their work on this machine, and how fast its disk and its tokenizers are."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import private_folder
from unidetox_ray.errors import ConfigError

#: Shares of a training group's start that every group waits for alone, and that groups on the same cores wait for one another.
_ALONE = 0.45
_DISK = 64 << 20
#: Text to read: as many different words as a few megabytes of English have.
_WORDS, _TEXTS = 20_000, 5_000


def start_up(advance: Any) -> dict[str, float]:
    """Seconds until Ray, a pool of actors and a training group have begun their work, of a character, and the disk's rates."""
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
            character = _character()
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
        "character_seconds": character,
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


def _character() -> float:
    """Seconds a character of text takes to train a tokenizer on and to be read by it, on one core."""
    from unidetox_ray import registry
    from unidetox_ray.bench.shapes import words
    from unidetox_ray.core.streams import generator
    from unidetox_ray.families.tokenizers import train_tokenizer

    known, rng = words(_WORDS), generator("rates text", 0)
    texts = [" ".join(known[int(i)] for i in rng.integers(0, _WORDS, size=40)) for _ in range(_TEXTS)]
    family, before = registry.lookup("families", "gpt2"), os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        train_tokenizer(family, texts[:20], 400)
        started = time.perf_counter()
        train_tokenizer(family, texts, 4000)(texts, add_special_tokens=False)
        return (time.perf_counter() - started) / sum(map(len, texts))
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


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
