"""Seconds of each kind of work on one device, from what it consists of and the device's rates.

Operations: 2 a matrix weight and token forward, 6 in training all of them (Kaplan et al. 2020, section 2.1; with frozen weights
4 total + 2 trained, `core.flops`), 4 x width a key that attention looks at. Bytes: the weights once a pass, the cached
keys and values up to the current position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unidetox_ray.plan.counting import Model
from unidetox_ray.plan.devices import Rates
from unidetox_ray.plan.memory import BYTES, sharded, trainable_of
from unidetox_ray.plan.texts import Tokens
from unidetox_ray.settings import TrainingSection

#: How much longer a step of DeepSpeed's engine takes than a plain one (7B on one H200: 269 and 312 ms against 177;
#: shared/reference/performance.md), by whether it shards.
ENGINE = {False: 1.5, True: 1.75}
#: Bytes a second between a GPU and the machine's memory, and what a CPU's optimiser reads and writes.
_HOST_LINK, _HOST_MEMORY = 2.0e10, 4.0e10
#: A reopened model is compared with the one in memory on the CPU (`stages.saving`): operations a second there.
_CHECK = 1.0e11


@dataclass(frozen=True)
class Spent:
    """seconds, and the operations and tokens that they are for."""

    seconds: float = 0.0
    operations: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds + other.seconds, self.operations + other.operations, self.tokens + other.tokens
        )

    def times(self, count: float) -> Spent:
        return Spent(self.seconds * count, self.operations * count, self.tokens * count)


def arithmetic(precision: str) -> str:
    """Which products a training precision makes."""
    return "fp32" if precision == "fp32" else "bf16"


def training(
    rates: Rates,
    model: Model,
    section: TrainingSection,
    texts: Tokens,
    rows: int,
    steps: float,
    world: int = 1,
    *,
    padded: float | None = None,
) -> Spent:
    """`steps` optimiser steps of `rows` rows in all over `world` workers. padded: length of every row, else of a batch's longest."""
    length = padded if padded is not None else texts.longest_of(rows)
    total, trained = trainable_of(model, section)
    mine = max(1.0, rows / world) * length
    # Looked-up embeddings are not multiplied: they are not among the matrix weights.
    operations = (4.0 * model.matrix + 2.0 * min(trained, model.matrix)) * mine
    one = rates.seconds(
        "train", operations=operations, precision=arithmetic(section.precision), layers=float(model.layers)
    )
    engine = sharded(section, world)
    if engine:
        stage = (
            1
            if section.precision == "bf16_master" and section.deepspeed.stage == 0
            else section.deepspeed.stage
        )
        if rates.gpu:
            one *= ENGINE[stage > 0]
        item = 4 if section.precision == "fp32" else 2
        # Ring all-reduce of the gradients; stage 3 gathers the weights forwards and backwards besides.
        moved = 2.0 * (world - 1) / world * item * trained + (
            2.0 * (world - 1) / world * item * total if stage == 3 else 0.0
        )
        one += moved / rates.link
        if section.deepspeed.offload == "optimizer":
            part = trained / world
            one += 2 * item * part / _HOST_LINK + 28.0 * part / _HOST_MEMORY
    # Blocks are compiled anew for every job (`core.compile_blocks`).
    compiling = rates.host["compile_seconds"] if rates.gpu and section.compile != "off" else 0.0
    return Spent(steps * one + compiling, steps * operations * world, steps * rows * texts.mean)


def decoding_work(
    models: Sequence[Model], precision: str, *, sequences: float, rows: int, prompt: float, mean: float, most: float,
    copies: int = 1, nucleus: bool = False,
) -> tuple[float, float, dict[str, float]]:  # fmt: skip
    """(operations, bytes, the further features) of continuing `sequences` prompts by `mean` tokens on average, `most` at most, by
    all models in lock-step in batches of `rows`; `copies` of a prompt share its reading."""
    item = BYTES[precision]
    steps = -(-sequences // max(1, min(rows, sequences))) * most
    tokens = sequences * mean
    keys = sequences * (mean * prompt + mean * mean / 2)
    read = sequences / copies * prompt
    operations = bytes_ = cached = 0.0
    for model in models:
        operations += 2.0 * model.matrix * (tokens + read) + 4.0 * model.width * keys
        bytes_ += float(item * model.matrix * steps)
        cached += float(item * 2 * model.layers * model.kv_heads * model.head_size * keys)
    extra = {
        "cached": cached,
        "layers": float(steps * sum(model.layers for model in models)),
        "drawn": tokens * models[0].vocab * (1.0 if nucleus else 0.25),
    }
    return operations, bytes_, extra


def decoding(rates: Rates, models: Sequence[Model], precision: str, **how: float | bool) -> Spent:
    """See `decoding_work`."""
    operations, bytes_, extra = decoding_work(models, precision, **how)  # type: ignore[arg-type]
    seconds = rates.seconds("decode", operations=operations, bytes_=bytes_, precision=precision, **extra)
    seconds += float(how["sequences"]) * rates.host["sequence_seconds"]
    return Spent(seconds, operations, float(how["sequences"]) * float(how["mean"]))


def reading(
    rates: Rates, model: Model, precision: str, tokens: float, texts: float, *, kind: str = "read"
) -> Spent:
    """`texts` texts of `tokens` tokens in all through a language model (`read`) or a classifier (`classify`)."""
    operations = 2.0 * model.matrix * tokens
    return Spent(
        rates.seconds(kind, operations=operations, precision=precision, texts=texts), operations, tokens
    )


def pretraining(rates: Rates, model: Model, steps: int, rows: int, length: float, characters: float) -> Spent:
    """A `scratch:` model: its tokenizer, and `steps` plain float32 steps."""
    operations = 6.0 * model.matrix * rows * length
    one = rates.seconds("train", operations=operations, precision="fp32", layers=float(model.layers))
    return Spent(
        steps * one + characters * rates.host["character_seconds"], steps * operations, steps * rows * length
    )


def opening(rates: Rates, bytes_: float, nodes: int = 1) -> float:
    """Seconds from the storage to the device; `nodes` machines read at once."""
    return bytes_ / rates.host["read_bytes"] + nodes * bytes_ / rates.host["shared_read_bytes"]


def saving(rates: Rates, model: Model, item: int) -> float:
    """Writing a trained model, reading it again and comparing two short texts on the CPU."""
    bytes_ = float(item * model.parameters)
    return (
        bytes_ / rates.host["write_bytes"]
        + bytes_ / rates.host["read_bytes"]
        + 2 * 2.0 * model.matrix * 64 / _CHECK
    )
