"""The Triton kernels against their torch twins: in Triton's interpreter on the CPU, for real where there is a GPU."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from unidetox_ray.core import kernels, ops
from unidetox_ray.core import sampling as plain
from unidetox_ray.core.decoder import Decoder
from unidetox_ray.core.kernels.attention import splits_for
from unidetox_ray.core.lean import LeanRunner
from unidetox_ray.core.logits import Mixture, Sampling

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu" and not kernels.interpreted():
    pytest.skip("triton was imported before TRITON_INTERPRET=1 was set", allow_module_level=True)

#: Relative to the greatest entry. bfloat16 has 8 binary digits, and the interpreter cuts off where a GPU rounds.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.7e-2}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def numbers() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float(
        (found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("with_residual", [True, False])
def test_add_norm(numbers: torch.Generator, dtype: torch.dtype, kind: str, with_residual: bool) -> None:
    wide = normal(numbers, 3, 2 * 80, dtype=dtype)
    x, residual = wide[:, :80], normal(numbers, 3, 80, dtype=dtype) if with_residual else None
    weight, bias = (
        normal(numbers, 80, dtype=dtype),
        normal(numbers, 80, dtype=dtype) if kind == "layer" else None,
    )
    found = kernels.add_norm(x, residual, weight, bias, 1e-5, kind)
    for ours, theirs in zip(found, ops.add_norm(x, residual, weight, bias, 1e-5, kind), strict=True):
        assert error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "relu", "silu"])
def test_activate(numbers: torch.Generator, dtype: torch.dtype, kind: str) -> None:
    both = 3 * normal(numbers, 3, 2 * 2500, dtype=dtype)  # more than one block of columns, rows strided
    x, gate = both[:, :2500], both[:, 2500:]
    assert error(kernels.activate(x, kind), ops.activate(x, kind)) < TOLERANCE[dtype]
    assert error(kernels.activate(x, kind, gate), ops.activate(x, kind, gate)) < TOLERANCE[dtype]


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="'swish' is not known"):
        kernels.activate(torch.zeros(1, 8, device=DEVICE), "swish")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "groups", "size", "turned"), [(3, 3, 24, 24), (6, 2, 80, 32), (5, 1, 64, 64)]
)
def test_rotation_and_the_cache(
    numbers: torch.Generator, dtype: torch.dtype, heads: int, groups: int, size: int, turned: int
) -> None:
    qkv = normal(numbers, 3, heads + 2 * groups, size, dtype=dtype)
    q, k, v = qkv.split([heads, groups, groups], dim=1)
    angle = normal(numbers, 3, turned // 2).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    positions = torch.tensor([0, 4, 6], device=DEVICE)
    assert error(kernels.rotate(q, cos, sin), ops.rotate(q, cos, sin)) < TOLERANCE[dtype]
    assert torch.equal(kernels.rotate(q, cos, sin)[..., turned:], q[..., turned:])
    expected = [normal(numbers, 3, groups, 7, size, dtype=dtype) for _ in range(2)]
    apart, fused = [[cache.clone() for cache in expected] for _ in range(2)]
    ops.write(k, v, *expected, positions)
    kernels.write(k, v, *apart, positions)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(apart, expected, strict=True))
    ops.write(ops.rotate(k, cos, sin), v, *expected, positions)
    queries = kernels.rotate_write(q, k, v, cos, sin, *fused, positions)
    assert error(queries, ops.rotate(q, cos, sin)) < TOLERANCE[dtype]
    assert error(fused[0], expected[0]) < TOLERANCE[dtype] and torch.equal(fused[1], expected[1])


def test_a_row_beyond_its_capacity_writes_nowhere(numbers: torch.Generator) -> None:
    k, cache = normal(numbers, 2, 2, 16), torch.zeros(2, 2, 4, 16, device=DEVICE)
    kernels.write(k, k, cache, cache.clone(), torch.tensor([4, 1], device=DEVICE))
    assert not cache[0].any() and torch.equal(cache[1, :, 1], k[1])
    assert cache.count_nonzero() == 32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "groups", "size", "alibi", "splits"),
    [
        (2, 2, 24, False, 1),
        (3, 3, 64, False, None),
        (2, 2, 80, True, 3),
        (2, 2, 128, False, 2),
        (5, 1, 64, False, 2),  # multi-query
        (4, 2, 80, True, 1),  # grouped queries
        (6, 2, 128, False, 3),
    ],
)
def test_attention(
    numbers: torch.Generator,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    size: int,
    alibi: bool,
    splits: int | None,
) -> None:
    lengths = torch.tensor([1, 150, 64], device=DEVICE)
    q = normal(numbers, 3, heads, size, dtype=dtype)
    caches = [normal(numbers, 3, groups, 160, size, dtype=dtype) for _ in range(2)]
    slopes = torch.rand(heads, generator=numbers).to(DEVICE) if alibi else None
    scale = size**-0.5
    expected = ops.attend(q, *caches, lengths, scale, slopes, 160)
    for cache in caches:  # what lies behind a row's length is not read: not even a NaN gets through
        for row, length in enumerate(lengths.tolist()):
            cache[row, :, length:] = float("nan")
    found = kernels.attend(q, *caches, lengths, scale, slopes, 160, splits=splits)
    assert error(found, expected) < TOLERANCE[dtype]


def test_strided_queries_and_a_cache_view(numbers: torch.Generator) -> None:
    qkv, caches = normal(numbers, 2, 12, 32), normal(numbers, 4, 4, 48, 32)
    lengths = torch.tensor([33, 7], device=DEVICE)
    keys, values = caches[::2], caches[1::2]
    found = kernels.attend(qkv[:, :4], keys, values, lengths, 0.2, None, 48)
    assert (
        error(found, ops.attend(qkv[:, :4], keys, values, lengths, 0.2, None, 48)) < TOLERANCE[torch.float32]
    )


def test_half_precision_products_take_the_tensor_cores_path(numbers: torch.Generator) -> None:
    # The interpreter widens bfloat16 for products, so float16 shows what a GPU does with both.
    q = normal(numbers, 2, 4, 32, dtype=torch.float16)
    caches = [normal(numbers, 2, 1, 80, 32, dtype=torch.float16) for _ in range(2)]
    lengths = torch.tensor([80, 3], device=DEVICE)
    found = kernels.attend(q, *caches, lengths, 0.2, None, 80)
    assert error(found, ops.attend(q, *caches, lengths, 0.2, None, 80)) < 2e-3


def test_splits_fill_the_device_and_no_more() -> None:
    assert splits_for(programs=640 * 25, longest=256, multiprocessors=132) == 1
    assert splits_for(programs=25, longest=2048, multiprocessors=132) == 32
    assert splits_for(programs=1, longest=100, multiprocessors=132) == 2  # one part a block of keys at most
    assert splits_for(programs=200, longest=2048, multiprocessors=132) == 4


CASES = [
    (Mixture(), Sampling(), 400),
    (Mixture((1.0, -1.0), alpha=0.1), Sampling(), 400),
    (Mixture((1.5, -0.5), alpha=0.02), Sampling(temperature=0.7), 130),
    (Mixture(), Sampling(top_p=0.9), 24),
    (Mixture(), Sampling(temperature=1.3, top_k=9), 24),
    (Mixture((1.0, 2.0, -2.0), nucleus=0.9), Sampling(), 24),
    (Mixture((1.0, 0.5, -0.5), nucleus=0.8), Sampling(top_k=20, top_p=0.7), 16),
]


def logits_for(
    generator: torch.Generator, rows: int, size: int, models: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    base = 3 * torch.randn(rows, size, generator=generator)
    return [(base + torch.randn(rows, size, generator=generator)).to(DEVICE, dtype) for _ in range(models)]


def test_sampling_equals_the_plain_sampler(numbers: torch.Generator) -> None:
    draws = differing = 0
    for number, (mixture, sampling, rows) in enumerate(CASES):
        dtype = DTYPES[number % 2]
        size = 301  # no multiple of a block
        logits = logits_for(numbers, rows, size, len(mixture.weights), dtype)
        uniform = torch.rand(rows, generator=numbers, dtype=torch.float64).to(DEVICE)
        before = [row.clone() for row in logits]
        found = kernels.sample(logits, mixture, sampling, uniform, block=512)
        expected = plain.sample(logits, mixture, sampling, uniform)
        assert found.dtype == torch.int64 and all(
            torch.equal(a, b) for a, b in zip(before, logits, strict=True)
        )
        draws, differing = draws + rows, differing + int((found != expected).sum())
    assert draws > 1000 and differing <= draws / 1000


@pytest.mark.parametrize(("mixture", "sampling"), [(CASES[1][0], CASES[1][1]), (CASES[6][0], CASES[6][1])])
def test_several_blocks_draw_what_one_draws(
    numbers: torch.Generator, mixture: Mixture, sampling: Sampling
) -> None:
    logits = logits_for(numbers, 6, 301, len(mixture.weights), torch.float32)
    uniform = torch.linspace(0.0, 0.999, 6, dtype=torch.float64, device=DEVICE)
    expected = plain.sample(logits, mixture, sampling, uniform)
    assert torch.equal(kernels.sample(logits, mixture, sampling, uniform, block=64), expected)


def drawn(
    row: list[float], uniform: list[float], sampling: Sampling, mixture: Mixture | None = None
) -> list[int]:
    logits = torch.tensor([row] * len(uniform), device=DEVICE)
    numbers = torch.tensor(uniform, dtype=torch.float64, device=DEVICE)
    return kernels.sample([logits], mixture or Mixture(), sampling, numbers).tolist()


def test_inversion_at_the_borders() -> None:
    row = torch.tensor([0.25, 0.0, 0.5, 0.25]).log().tolist()
    # A number that equals a step of the sum belongs to the next token with mass; 1 - 2^-53 to the last one.
    assert drawn(row, [0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], Sampling()) == [0, 0, 2, 2, 3, 3]


def test_ties_with_the_last_kept_token_stay() -> None:
    row = torch.tensor([0.4, 0.2, 0.2, 0.2]).log().tolist()
    ends = [0.0, 1 - 2**-53]
    assert drawn(row, ends, Sampling(top_p=0.3)) == [0, 0]
    assert drawn(row, ends, Sampling(top_p=0.5)) == [0, 3]  # one of three equal tokens is needed: all stay
    assert drawn(row, ends, Sampling(top_k=2)) == [0, 3]
    assert drawn(row, ends, Sampling(top_k=1)) == [0, 0]
    assert drawn(row, ends, Sampling(), Mixture(nucleus=0.3)) == [0, 0]
    assert drawn(row, ends, Sampling(), Mixture(nucleus=0.5)) == [0, 3]
    assert drawn(row, ends, Sampling(), Mixture(alpha=0.5001)) == [0, 0]


def test_forbidden_tokens_are_never_drawn() -> None:
    never = float("-inf")
    uniform = [0.0, 0.5, 1 - 2**-53]
    assert drawn([never, 1.0, never], uniform, Sampling()) == [1, 1, 1]
    assert drawn([never, 1.0, never], uniform, Sampling(top_k=2, top_p=0.5)) == [1, 1, 1]
    both = torch.tensor([[never, 0.5, never, 0.1]] * 3, device=DEVICE)
    numbers = torch.tensor(uniform, dtype=torch.float64, device=DEVICE)
    for mixture in (
        Mixture((1.0, -1.0)),
        Mixture((1.0, -1.0), alpha=0.1),
        Mixture((1.0, -1.0), nucleus=0.99),
    ):
        assert set(kernels.sample([both, both], mixture, Sampling(), numbers).tolist()) == {1, 3}
    # Not one finite score: no token, and the rows beside it are unharmed.
    rows = torch.tensor([[never] * 4, [0.0, 9.0, 0.0, 0.0], [float("nan")] * 4], device=DEVICE)
    for sampling in (Sampling(), Sampling(top_k=2, top_p=0.9)):
        assert kernels.sample([rows], Mixture(), sampling, numbers).tolist() == [-1, 1, -1]


def test_what_the_kernel_does_not_mix_goes_to_the_plain_sampler(numbers: torch.Generator) -> None:
    logits = logits_for(numbers, 4, 30, 2, torch.bfloat16)
    uniform = torch.rand(4, generator=numbers, dtype=torch.float64).to(DEVICE)
    released = Mixture((1.0, -1.0), alpha=0.1, dtype=torch.bfloat16)
    assert kernels.why_not_fused(logits, released) is not None
    expected = plain.sample(logits, released, Sampling(), uniform)
    assert torch.equal(kernels.sample(logits, released, Sampling(), uniform), expected)
    assert kernels.why_not_fused(logits * 2, Mixture((1.0,) * 4)) == "4 models; the kernel mixes at most 3"
    with pytest.raises(ValueError, match="2 models, but the mixture has 1 weights"):
        kernels.sample(logits, Mixture(), Sampling(), uniform)


def test_where_the_kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.why_not(torch.device("cpu")) == "the kernels are for CUDA devices, the tensors lie on cpu"
    monkeypatch.setenv("UNIDETOX_TRITON", "0")
    assert kernels.why_not(torch.device("cuda")) == "switched off by UNIDETOX_TRITON=0"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_decoder_on_the_kernels(random_decoder: Callable[..., Decoder], dtype: torch.dtype) -> None:
    found = []
    for module in (ops, kernels):
        runner = LeanRunner(lambda: random_decoder(3, DEVICE, dtype), ops=module, through_ops=True)
        runner.open(2, 20)
        ids = torch.tensor([[1, 2, 3], [4, 0, 0]], device=DEVICE)
        runner.prefill(ids, torch.tensor([3, 1], device=DEVICE), torch.tensor([0, 1], device=DEVICE))
        found.append(torch.stack([runner.step(torch.tensor([5 + n, 9], device=DEVICE)) for n in range(3)]))
    assert error(found[1], found[0]) < (1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
def test_sampling_at_the_real_size(numbers: torch.Generator) -> None:
    for mixture, sampling, _ in CASES:
        logits = logits_for(numbers, 640, 50257, len(mixture.weights), torch.bfloat16)
        uniform = torch.rand(640, generator=numbers, dtype=torch.float64).to(DEVICE)
        found = kernels.sample(logits, mixture, sampling, uniform)
        assert int((found != plain.sample(logits, mixture, sampling, uniform)).sum()) <= 1
