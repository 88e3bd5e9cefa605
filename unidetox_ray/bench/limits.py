"""What this device can do at most, measured on the spot with the threads of the moment, and what a job needs.

share of the limit = max(bytes needed / bandwidth, operations needed / arithmetic limit) / seconds taken. Needs count what
no implementation can avoid with this batch; they are lower bounds, so that a share near 1 is out of reach in practice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unidetox_ray.bench.timing import seconds_of


@dataclass(frozen=True)
class Limits:
    """bandwidth: bytes/s of a large copy, bytes read and written both counted. arithmetic: operations/s of a large
    matrix product, a multiply and an add counted as two."""

    bandwidth: float
    arithmetic: float

    def seconds(self, needs: Needs) -> float:
        """The least time in which the needs can be met: the longer of the two bounds, as if they overlapped fully."""
        return max(needs.bytes / self.bandwidth, needs.operations / self.arithmetic)

    def as_dict(self) -> dict[str, float]:
        return {"bandwidth_gb_s": self.bandwidth / 1e9, "arithmetic_gflop_s": self.arithmetic / 1e9}


@dataclass(frozen=True)
class Needs:
    """bytes: memory traffic. operations: floating-point operations of matrix products."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class Costs:
    """What one token costs in a model.

    matrix: weights that every token is multiplied with, the head included (embeddings are looked up, not multiplied).
    head: of these the head's. parameters: all, tied ones once. width: layers x heads x head size. kv: values that one
    cached position holds (keys and values). itemsize: bytes a value.
    """

    matrix: int
    head: int
    parameters: int
    width: int
    kv: int
    itemsize: int


#: The best seen in this process, and when it was last looked for: anything else that runs here for a moment makes a limit
#: look smaller than it is.
_SEEN: dict[tuple[str, torch.dtype, int], tuple[Limits, float]] = {}
_FRESH_SECONDS = 10.0


def limits_of(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measured now, or better ones measured before; benchmarks ask before and after they run."""
    key = (str(device), dtype, torch.get_num_threads())
    seen, when = _SEEN.get(key, (Limits(0.0, 0.0), float("-inf")))
    if time.monotonic() - when > _FRESH_SECONDS:
        now = _measured(device, dtype)
        seen = Limits(max(now.bandwidth, seen.bandwidth), max(now.arithmetic, seen.arithmetic))
        _SEEN[key] = seen, time.monotonic()
    return seen


def _measured(device: torch.device, dtype: torch.dtype) -> Limits:
    on_gpu = device.type == "cuda"
    bytes_ = 1 << 32 if on_gpu else 1 << 28
    source = torch.zeros(bytes_ // 4, device=device)
    bandwidth = 2 * bytes_ / _best(torch.zeros_like(source).copy_, source, device)
    del source
    size = 8192 if on_gpu else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = _best(left.matmul, right, device)
    if not on_gpu and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # On some CPUs oneDNN is far faster than the BLAS library behind `matmul`; the limit is the faster one's.
        packed = torch.ops.mkldnn._reorder_linear_weight(right, size)
        with torch.inference_mode():
            product = min(product, _best(_onednn(packed), left, device))
    return Limits(bandwidth, 2 * size**3 / product)


def _onednn(packed: torch.Tensor) -> Callable[[torch.Tensor], object]:
    return lambda left: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")


def _best(run: Callable[[torch.Tensor], object], argument: torch.Tensor, device: torch.device) -> float:
    """Seconds of the fastest of five runs after one that does not count."""
    run(argument)
    return min(seconds_of(lambda: run(argument), device) for _ in range(5))


def costs_of(model: Any) -> Costs:
    """Of a Hugging Face model, causal or a classifier."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    matrix = sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in looked_up)
    if (
        head is not None and id(head.weight) in looked_up
    ):  # tied: looked up at the bottom, multiplied with at the top
        matrix += head.weight.numel()
    config = model.config
    layers, heads, hidden = config.num_hidden_layers, config.num_attention_heads, config.hidden_size
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Costs(
        matrix=matrix, head=0 if head is None else head.weight.numel(), parameters=sum(p.numel() for p in model.parameters()),
        width=layers * hidden, kv=2 * layers * kv_heads * (hidden // heads), itemsize=model.dtype.itemsize,
    )  # fmt: skip


def decode_needs(
    models: Sequence[Costs],
    prompts: Sequence[int],
    new_tokens: int,
    *,
    copies: int = 1,
    rows: int | None = None,
) -> Needs:
    """Generating `new_tokens` for `copies` of each prompt (lengths in tokens) by all models in lock-step.

    bytes: in each of a batch's `new_tokens` passes all weights once and, from the second on, each row's cached keys and
    values up to the current position. operations: 2 x matrix weights a token (the head only where a token is drawn) and
    4 x width x keys for attention; a prompt is read once for all its copies. rows: of a batch; None = all in one.
    """
    sequences = len(prompts) * copies
    batches = 1 if rows is None else -(-sequences // rows)
    later = new_tokens - 1
    # Keys seen by the steps after the prompt: p + 1 … p + later.
    keys = copies * sum(later * p + later * (later + 1) // 2 for p in prompts)
    prompt_keys = sum(p * (p + 1) // 2 for p in prompts)
    read = operations = 0.0
    for costs in models:
        read += costs.itemsize * (costs.matrix * batches * new_tokens + costs.kv * keys)
        body = costs.matrix - costs.head
        operations += 2 * body * (sum(prompts) + sequences * later)
        operations += 2 * costs.head * (len(prompts) + sequences * later)
        operations += 4 * costs.width * (keys + prompt_keys)
    return Needs(read, operations)


def reading_needs(costs: Costs, lengths: Sequence[int], *, causal: bool, heads: int | None = None) -> Needs:
    """Reading sequences of these lengths once, without padding.

    bytes: the weights once. operations: 2 x matrix weights a token and 4 x width x keys (half of them under a causal
    mask). heads: how many positions go through the head; None = all.
    """
    tokens = sum(lengths)
    keys = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
    scored = tokens if heads is None else heads
    operations = 2 * (costs.matrix - costs.head) * tokens + 2 * costs.head * scored + 4 * costs.width * keys
    return Needs(float(costs.itemsize * costs.matrix), float(operations))


def training_needs(costs: Costs, tokens: int, steps: int) -> Needs:
    """Full-parameter AdamW steps.

    operations: 6 x parameters x tokens (the usual count for model FLOPs utilisation, attention left out). bytes: a step
    reads the weights twice, writes the gradients, and reads four and writes three values a parameter in the update.
    """
    return Needs(10.0 * costs.itemsize * costs.parameters * steps, 6.0 * costs.parameters * tokens)
