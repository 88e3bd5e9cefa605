"""What a benchmark is asked for, and the defaults of each kind by device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unidetox_ray.errors import ConfigError
from unidetox_ray.registry import suggest

NAMES = ("decode", "generate", "score", "finetune", "pipeline")
SIZES = ("tiny", "gpt2", "gpt2-xl", "7b")
KINDS = ("toxicity", "perplexity", "mmlu")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Options:
    """None = the benchmark's own default for the device; `docs/performance.md` lists them."""

    size: str | None = None
    device: str | None = None
    """cpu, cuda or cuda:N; None = a GPU where there is one. `pipeline` leaves the choice to Ray."""
    dtype: str | None = None
    """fp32 or bf16; None = fp32 on a CPU, bf16 on a GPU. Classifiers are always fp32."""
    batch: int | None = None
    """Rows in a batch (decode, generate, finetune) or padded tokens in a batch (score)."""
    texts: int | None = None
    """Sequences (decode), prompts (generate), texts or questions (score), rows (finetune), limit (pipeline)."""
    tokens: int | None = None
    """New tokens a sequence (decode, generate), tokens a row (finetune)."""
    repeats: int = 3
    """Timed runs of each side; the fastest counts. A side that has used `patience` seconds is not run again."""
    patience: float = 30.0
    threads: int | None = None
    """torch threads on the CPU; None = torch's own choice."""
    plain: bool = True
    """Whether the plain loop is run at all; without it there is no ratio."""
    kind: str = "toxicity"
    """What `score` measures."""
    experiment: str | None = None
    """Experiment file of `pipeline`; None = experiments/tiny.yaml, of the folder or of the source tree."""
    cache: Path | None = None
    """Where `pipeline` keeps its pre-trained models; None = outputs/cache if it is there, else a temporary folder."""
    actors: int | None = None
    """How many actors, trials and families `pipeline` lets Ray work on at once; None = as the experiment file says."""


def checked(name: str, options: Options) -> Options:
    """The same options. ConfigError where a name is unknown or a number makes no sense."""
    for what, value, known in (
        ("bench", name, NAMES),
        ("--size", options.size, SIZES),
        ("--dtype", options.dtype, DTYPES),
        ("--kind", options.kind, KINDS),
    ):
        if value is not None and value not in known:
            raise ConfigError(f"{what} {value!r} is not known; {suggest(value, known)}")
    for what, number in (
        ("--batch", options.batch),
        ("--texts", options.texts),
        ("--tokens", options.tokens),
        ("--repeats", options.repeats),
        ("--threads", options.threads),
        ("--actors", options.actors),
    ):
        if number is not None and number < 1:
            raise ConfigError(f"{what} {number} makes no sense; give at least 1")
    if not 0 <= options.patience < float("inf"):
        raise ConfigError(
            f"--patience {options.patience} makes no sense; give a number of seconds, at least 0"
        )
    if options.kind != "toxicity" and name != "score":
        raise ConfigError(f"--kind {options.kind} belongs to `bench score`, not to `bench {name}`")
    own = (options.experiment, options.cache, options.actors)
    if name != "pipeline" and own != (None, None, None):
        raise ConfigError(
            f"--experiment, --cache and --actors belong to `bench pipeline`, not to `bench {name}`"
        )
    if name == "pipeline":
        _for_pipeline(options)
    return options


def _for_pipeline(options: Options) -> None:
    if options.size not in (None, "tiny"):
        raise ConfigError(
            f"--size {options.size}: `bench pipeline` runs the tiny experiment only; leave --size out"
        )
    given = {"--device": options.device, "--dtype": options.dtype, "--batch": options.batch, "--tokens": options.tokens,
             "--threads": options.threads}  # fmt: skip
    for what, value in given.items():
        if value is not None:
            raise ConfigError(f"{what}: `bench pipeline` takes it from the experiment file; leave {what} out")
