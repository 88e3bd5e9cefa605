"""Compiles what the kernels' wrappers launch, for GPUs that are not there. Run as a program: prints one line a kernel.

The wrappers are called with CPU tensors of the models' real shapes; each launch goes to Triton's compiler and its
assembler with the very arguments, instead of to a GPU. Not a test module: `test_kernels_build.py` runs it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from unidetox_ray.core import kernels
from unidetox_ray.core.logits import Mixture, Sampling

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.float64: "*fp64",
}
CAPABILITIES = [int(word) for word in sys.argv[1:]] or [80, 90]


def compiled(kernel: Any, *arguments: Any, **named: Any) -> None:
    """Compile one launch for every capability."""
    parameters = [parameter.name for parameter in kernel.params]
    values = dict(zip(parameters, arguments, strict=False)) | {
        k: v for k, v in named.items() if k in parameters
    }
    options = {name: value for name, value in named.items() if name not in parameters}
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (
            isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        ):
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
        else:
            signature[parameter.name] = "fp32"
        even = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if even and not parameter.do_not_specialize:
            hints[(place,)] = [["tt.divisibility", 16]]
    for capability in CAPABILITIES:
        source = ASTSource(kernel, signature, constants, hints)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assembly = built.asm["ptx"]
        facts = f"shared {built.metadata.shared} cp.async {assembly.count('cp.async.c')} mma {assembly.count('mma.')}"
        print(
            f"built {kernel.fn.__name__} sm_{capability} {len(built.asm['cubin'])} bytes, {facts}", flush=True
        )


def main() -> None:
    setattr(  # noqa: B010 - a launch becomes a compilation
        JITFunction, "__getitem__", lambda kernel, _grid: lambda *a, **k: compiled(kernel, *a, **k)
    )
    half = torch.bfloat16

    def new(*shape: int, dtype: torch.dtype = half) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype)

    x, wide = new(4, 1600), new(1600)
    kernels.add_norm(x, x, wide, wide, 1e-5, "layer")
    kernels.add_norm(x, None, wide, None, 1e-5, "rms")
    for kind in ("gelu", "gelu_tanh", "relu", "silu"):
        kernels.activate(x, kind, None if kind.startswith("gelu") else x)
    lengths, slopes = torch.ones(4, dtype=torch.long), torch.ones(64)
    # GPT-2 XL; LLaMA-2; Falcon-7B (multi-query); grouped queries with ALiBi; head size 80 in float32.
    for heads, groups, size, alibi, splits, dtype in [
        (25, 25, 64, False, 4, half),
        (32, 32, 128, False, 1, half),
        (71, 1, 64, False, 2, half),
        (64, 8, 128, True, 1, half),
        (8, 2, 80, False, 1, torch.float32),
    ]:
        cache = new(4, groups, 256, size, dtype=dtype)
        bias = slopes[:heads] if alibi else None
        kernels.attend(new(4, heads, size, dtype=dtype), cache, cache, lengths, 0.1, bias, 256, splits=splits)
    cache, q, k = new(4, 8, 256, 128), new(4, 32, 128), new(4, 8, 128)
    cos = new(4, 128)
    kernels.rotate(q, cos, cos)
    kernels.write(k, k, cache, cache, lengths)
    kernels.rotate_write(q, k, k, cos, cos, cache, cache, lengths)
    uniform, logits = torch.zeros(4, dtype=torch.float64), new(4, 50257)
    for mixture, sampling in [
        (Mixture((1.0, -1.0), alpha=0.1), Sampling()),
        (Mixture((1.0, 2.0, -2.0), nucleus=0.9), Sampling(temperature=0.7, top_k=40, top_p=0.9)),
    ]:
        kernels.sample([logits] * len(mixture.weights), mixture, sampling, uniform)


if __name__ == "__main__":
    main()
