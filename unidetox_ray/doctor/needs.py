"""What an experiment takes, from the shapes of its models alone, rounded up: memory of the device and room on the storage."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from unidetox_ray.settings import FinetuneSection, ModelRef, ScratchSection, ToxicSection

if TYPE_CHECKING:
    from unidetox_ray.config import Experiment

_GIB = 2**30
#: Bytes a parameter while it is trained: weights, gradients and two moments (and fp32 copies).
_TRAINED = {"fp32": 16, "bf16_master": 16, "bf16_pure": 8}
#: Bytes of activations for a token, a layer and a unit of width, in 16 bits (Korthikanti et al. 2022, without the attention map).
_ACTIVATIONS = 34
_STORED = {"fp32": 4, "bf16_master": 4, "bf16_pure": 2}

Shape = tuple[int, int, int, int]
"""Parameters, layers, width, vocabulary."""
Trained = tuple[Shape, FinetuneSection | ToxicSection]
"""A model, and the settings that it is trained with."""


def needs(experiment: Experiment) -> dict[str, float]:
    """memory_gib: of one device (of the machine, where there is none), at its fullest; disk_gib: of downloads and the storage.

    ModelError for a hub model whose shape is not known here.
    """
    from unidetox_ray.stages.needs import method_of, needed

    wanted = needed(experiment)
    shapes = {
        family: _shape(experiment.model_of(family))
        for family in dict.fromkeys([experiment.base_family, *experiment.families])
    }
    trained: list[Trained] = [(shapes[family], experiment.toxic) for _, family in wanted.copies]
    trained += [
        (shapes[family], experiment.finetune)
        for family in experiment.families
        for entry in experiment.methods
        if method_of(entry).kind in ("corpus", "weights")
        for _ in (experiment.seeds or (experiment.seed,))
    ]
    workers = experiment.cluster.workers_per_cell
    memory = [_training_bytes(shape, section, workers) for shape, section in trained]
    opened = [_decoding_bytes(shape, experiment.evaluate.precision) for shape in shapes.values()]
    if wanted.sampled:
        opened.append(2 * _decoding_bytes(shapes[experiment.base_family], experiment.corpus.precision))
    downloads = sum(4 * parameters for parameters, _, _, _ in shapes.values())
    kept = sum(_STORED[section.precision] * shape[0] for shape, section in trained)
    at_once = experiment.cluster.concurrent_cells or 1
    checkpoints = [14 * shape[0] * at_once for shape, section in trained if section.checkpoint_every]
    return {
        "memory_gib": max([*memory, *opened]) / _GIB,
        "disk_gib": (downloads + kept + max(checkpoints, default=0)) / _GIB,
    }


def _shape(model: ModelRef) -> Shape:
    if model.source == "scratch:":
        spec = model.scratch or ScratchSection()
        size = 12 * spec.layers * spec.hidden**2 + (spec.vocab_size + spec.max_positions) * spec.hidden * 2
        return size, spec.layers, spec.hidden, spec.vocab_size
    return _published(model.source)


@cache
def _published(source: str) -> Shape:
    from transformers import AutoConfig

    from unidetox_ray.families.loading import meta_parameters, offline_config

    folder = Path(source).expanduser()
    config = (
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if folder.is_dir()
        else offline_config(source)
    )
    return meta_parameters(config), config.num_hidden_layers, config.hidden_size, config.vocab_size


def _training_bytes(shape: Shape, section: FinetuneSection | ToxicSection, workers: int) -> float:
    parameters, layers, width, vocabulary = shape
    shared = workers if section.deepspeed.stage else 1
    tokens = section.batch_size * section.max_length / workers
    wide = 2 if section.precision == "fp32" else 1
    activations = tokens * layers * width * _ACTIVATIONS * wide
    logits = tokens * vocabulary * 4 * 4  # logits, their softmax and the gradients of both, in fp32
    return parameters * _TRAINED[section.precision] / shared + activations + logits


def _decoding_bytes(shape: Shape, precision: str) -> float:
    # A fifth for the cache of keys and values: its batch (`cluster.decode_rows`) can be lowered, the weights cannot.
    return shape[0] * (4 if precision == "fp32" else 2) * 1.2
