"""Bytes: what a training, a batch of decoding and a batch of scoring hold at their peak on one device.

Letters: N parameters, B rows, T positions, H hidden size, V vocabulary. The formulas are checked against
the measured peaks in tests/plan/test_memory_figures.py; docs/plan.md says what they leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unidetox_ray.errors import ModelError
from unidetox_ray.plan.counting import Model
from unidetox_ray.settings import DeepSpeedSection, FinetuneSection, TrainingSection

BYTES = {"fp32": 4, "bf16": 2}
#: Of a CUDA process before it holds anything: context, libraries, the allocator's own.
CONTEXT = int(0.6 * 2**30)
#: Of a CPU process with torch, transformers and Ray loaded (resident; measured here: 0.54 GiB).
PROCESS = int(0.6 * 2**30)
#: Flat buffers that DeepSpeed's engine moves gradients through.
_ENGINE = int(1.5 * 2**30)
#: Bytes of a logit in training: bf16, float32 for the loss, its gradient, the log-probabilities.
_LOGIT = {2: 12, 4: 12}
#: Logits that a scorer has in memory at once, float32, and their exponentials (`metrics.likelihood`).
_SCORED_LOGITS = 2 * 4 * 2**26


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what they are for."""

    weights: float = 0.0
    gradients: float = 0.0
    optimiser: float = 0.0
    activations: float = 0.0
    cache: float = 0.0
    logits: float = 0.0
    other: float = 0.0
    host: float = 0.0
    """Bytes in the machine's own memory instead (offload)."""
    added_up: bool = False
    """Gradients of several pieces of a batch are added up: the first piece's are there while the next one is read."""

    @property
    def peak(self) -> float:
        """Gradients come as activations go: both shrink and grow along the layers, so that the peak is at one of the ends."""
        work = self.activations + self.logits
        passing = self.gradients + work if self.added_up else max(self.gradients, work)
        return self.weights + self.optimiser + self.cache + self.other + passing

    def as_gib(self) -> dict[str, float]:
        names = ("weights", "gradients", "optimiser", "activations", "cache", "logits", "other", "host")
        return {name: round(getattr(self, name) / 2**30, 3) for name in names}


def trainable_of(model: Model, section: TrainingSection) -> tuple[int, int]:
    """(parameters, trained ones) with the adapters of the section. ModelError where the model has no place for them."""
    if not isinstance(section, FinetuneSection) or section.adapter == "none":
        return model.parameters, model.parameters - model.frozen
    if section.adapter == "lora":
        one, size = model.rank_parameters, section.lora.rank
    else:
        one, size = model.bottleneck_parameters, section.bottleneck.size
    if one is None:
        raise ModelError(
            f"{model.name}: has no known place for adapter: {section.adapter}; take another one, or none"
        )
    return model.parameters + size * one, size * one


def sharded(section: TrainingSection, world: int) -> bool:
    """Whether DeepSpeed's engine takes the steps (`stages.deepspeed_config.shards_nothing` otherwise)."""
    deepspeed = section.deepspeed
    return (
        world > 1 or deepspeed.stage > 0 or deepspeed.offload != "none" or section.precision == "bf16_master"
    )


def training(
    model: Model, section: TrainingSection, rows: int, length: int, world: int, *, compiled: bool
) -> Memory:
    """Of one worker whose share of a batch is `rows` rows of at most `length` positions, `section.micro_batch` of them at once.

    Bytes a parameter, of which those in brackets are divided by the workers from the stage on that is named:
      no engine       fp32 4 weights + 4 gradients + 8 moments; bf16_pure 2 + 2 + 4
      bf16_pure       2 + 2 + (stage 1: master 2, moments 4, the partition's gradients 2)    12 N measured on one worker
      bf16_master     2 + 2 + (stage 1: master 4, moments 8, float32 gradients 4, buffer 2)  22 N measured
      fp32            4 + 4 + (stage 1: flat copy 4, moments 8, the partition's gradients 4) by the same rule, not measured
    Stage 2 divides the gradients as well, stage 3 the weights too, but for one layer that is gathered.
    """
    deepspeed: DeepSpeedSection = section.deepspeed
    total, trained = trainable_of(model, section)
    item = 4 if section.precision == "fp32" else 2
    stage = 1 if section.precision == "bf16_master" and deepspeed.stage == 0 else deepspeed.stage
    weights, gradients = float(item * total), float(item * trained)
    buffers, host = 0.0, 0.0
    if not sharded(section, world):
        optimiser = float(2 * item * trained)
    elif stage == 0:
        optimiser, buffers = float(2 * item * trained), float(_ENGINE)
    else:
        held = {"fp32": 16, "bf16_pure": 8, "bf16_master": 18}[section.precision]
        part = held * trained / world
        optimiser, host = (0.0, part) if deepspeed.offload == "optimizer" else (part, 0.0)
        if stage >= 2:
            gradients /= world
        if stage == 3:
            layer = item * model.matrix / max(1, model.layers)
            weights = weights / world + 2 * layer
    at_once = min(rows, section.micro_batch or rows)
    tokens = at_once * length
    activations = float(item * tokens * model.layers * _values_a_layer(model, compiled))
    logits = float(_LOGIT[item] * tokens * model.vocab)
    return Memory(
        weights,
        gradients,
        optimiser,
        activations,
        logits=logits,
        other=buffers,
        host=host,
        added_up=at_once < rows,
    )


def _values_a_layer(model: Model, compiled: bool) -> float:
    """Values that a layer keeps of one position for the way back.

    Compiled: its input, two norms, the residual sum, queries, keys, values, attention's result, and the feed-forward
    layer before and after its activation. Not compiled, the unfused activation and float32 norms keep their own: as many
    as autograd saves of transformers' GPT-2 and LLaMA in bfloat16. Layers that norm queries and keys as well keep more (a
    sixth for Qwen3), state-space layers without their kernels many times more.
    """
    projections = (model.heads + 2 * model.kv_heads + model.heads) * model.head_size
    kept = 4 * model.hidden + projections + (3 if model.gated else 2) * model.widest
    if not compiled:
        kept += 4 * model.hidden + model.widest if model.gated else 3 * model.widest
    return float(kept)


def decoding(
    models: Sequence[Model], precision: str, rows: int, capacity: int, prompt: int, *, gpu: bool
) -> Memory:
    """`rows` rows of `capacity` positions by all models in lock-step: the run's own estimate (`core.memory`)."""
    from unidetox_ray.core import memory

    shapes = [model.shape(BYTES[precision]) for model in models]
    weights = float(sum(BYTES[precision] * model.parameters for model in models))
    room = -(-capacity // 16) * 16
    cache = float(rows * sum(shape.position_bytes for shape in shapes) * room)
    whole = memory.peak_bytes(shapes, rows, capacity, prompt=prompt, fused=gpu)
    return Memory(weights=weights, cache=cache, activations=max(0.0, whole - cache))


def rows_of(
    models: Sequence[Model],
    precision: str,
    free: float,
    capacity: int,
    wanted: int,
    prompt: int,
    *,
    gpu: bool,
) -> int:
    """Rows of a batch as the run chooses them; 0 where not even one fits. free: bytes beside the weights."""
    from unidetox_ray.core import memory
    from unidetox_ray.errors import ModelError

    if not gpu:
        return min(256, wanted)
    if free <= 0:
        return 0
    shapes = [model.shape(BYTES[precision]) for model in models]
    try:
        return memory.rows_that_fit(int(free), shapes, capacity, wanted, prompt=prompt, fused=True)
    except ModelError:
        return 0


def scoring(models: Sequence[tuple[Model, str]], tokens: int, kept: int) -> Memory:
    """An actor with these models open at once, of which one reads `tokens` padded tokens. kept: positions whose keys and values
    are kept for what shares them."""
    if not models:
        return Memory()
    weights = float(sum(BYTES[precision] * model.parameters for model, precision in models))
    # Weights of all; activations of the widest one: nothing is kept for a way back.
    reading = max(tokens * 2 * model.shape(BYTES[precision]).work_bytes for model, precision in models)
    cache = max(
        min(tokens, kept) * model.shape(BYTES[precision]).position_bytes for model, precision in models
    )
    logits = min(_SCORED_LOGITS, 8 * tokens * max(model.vocab for model, _ in models))
    return Memory(weights=weights, activations=float(reading), cache=float(cache), logits=float(logits))
