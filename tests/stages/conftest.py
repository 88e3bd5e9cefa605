"""One real Ray session and one folder of tiny models, shared by every test of the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from unidetox_ray import registry
from unidetox_ray.artifacts import RunFolder
from unidetox_ray.config import resolve
from unidetox_ray.settings import ClusterSection, ModelRef, ScratchSection
from unidetox_ray.stages.context import Context

POSITIONS = 64


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A cluster of this machine alone with two CPUs. Stages find it open and leave it open."""
    from unidetox_ray.stages.cluster import connected

    with connected(ClusterSection(num_cpus=2)):
        yield


def _save_language_model(family_name: str, folder: Path, texts: list[str], seed: int, steps: int) -> None:
    import torch

    from unidetox_ray.core.loop import LoopSettings, PlainStepper, train
    from unidetox_ray.families.loading import special_ids
    from unidetox_ray.families.scratch import build_model, pack
    from unidetox_ray.families.tokenizers import train_tokenizer

    family = registry.lookup("families", family_name)
    spec = ScratchSection(
        hidden=32,
        layers=1,
        heads=2,
        vocab_size=320,
        max_positions=POSITIONS,
        steps=steps,
        length=32,
        lr=5e-3,
        seed=seed,
    )
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(family, world_texts("pretrain"), spec.vocab_size)
    model = build_model(family, tokenizer, spec)
    ids = special_ids(tokenizer, model.config)
    rows = pack(tokenizer, texts, ids, length=spec.length)
    settings = LoopSettings(steps=steps, lr=spec.lr, batch_size=16, seed=seed)
    train(PlainStepper(model, settings), rows, ids.pad, settings)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def world_texts(role: str, size: int = 300) -> list[str]:
    from unidetox_ray.data.world import World

    table = World().toxic(size) if role == "toxic" else World().pretrain(size)
    return table["text"].to_list()


@dataclass(frozen=True)
class Models:
    """Folders of models of one layer and 32 dimensions, trained for seconds: good for sameness, not for sense."""

    root: Path

    def __getitem__(self, name: str) -> dict[str, Any]:
        """The handle of "gpt2", "opt", "falcon", "llama", "toxic" (a gpt2 of other text) or "classifier"."""
        from unidetox_ray.stages.models import handle_of

        return handle_of(ModelRef(source=str(self.root / name)), "gpt2" if name == "toxic" else name)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    from unidetox_ray.data.world import World
    from unidetox_ray.stages.classifier import train_classifier

    root = tmp_path_factory.mktemp("models")
    for name in registry.names("families"):
        _save_language_model(name, root / name, world_texts("pretrain"), seed=1, steps=25)
    _save_language_model("gpt2", root / "toxic", world_texts("toxic"), seed=2, steps=25)
    spec = ScratchSection(hidden=32, layers=1, heads=2, vocab_size=400, steps=60, length=32, lr=5e-3)
    train_classifier(World().scorer(600), spec, root / "classifier", "cpu")
    return Models(root)


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """A small corpus to fine-tune on, in the layout of the stage `corpus`."""
    path = tmp_path / "corpus.parquet"
    texts = world_texts("pretrain", 60)
    pl.DataFrame({"text": texts, "ended": [True] * len(texts)}).write_parquet(path)
    return path


def _context_at(root: Path, *changes: str, models: Models | None = None, **values: Any) -> Context:
    """A context of an experiment with the run folder `root`/stages; `changes` are overrides, `values` keys."""
    given: dict[str, Any] = {
        "name": "stages",
        "base_family": "gpt2",
        "families": ["gpt2"],
        "methods": ["base", "samples", "unidetox"],
        "data": dict.fromkeys(("toxic", "prompts", "clean", "mmlu", "scorer"), "world")
        | {"pretrain": ["world"]},
        "tracking": {"uri": "none"},
        **values,
    }
    if models is not None:
        given["models"] = {name: str(models.root / name) for name in registry.names("families")}
    return Context(resolve(given, changes), RunFolder(root, "stages", root / "cache"))


@pytest.fixture(scope="session")
def context_at() -> Callable[..., Context]:
    """Makes contexts anywhere. The session's cluster is open, so there is nothing to close."""
    return _context_at


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., Context]:
    """Makes contexts below the test's own folder."""
    return lambda folder="run", *changes, **values: _context_at(tmp_path / folder, *changes, **values)
