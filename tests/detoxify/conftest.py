"""A tokenizer without padding, shared by all models here, and jobs that train in this very process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from unidetox_ray import registry
from unidetox_ray.core.loop import LoopSettings
from unidetox_ray.data.world import World
from unidetox_ray.families.tokenizers import train_tokenizer
from unidetox_ray.stages.training import Job


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return World(0).pretrain(60)["text"].to_list()


@pytest.fixture(scope="session")
def tokenizer(texts) -> Any:
    """GPT-2's kind: no pad token, BOS and EOS are one, 320 tokens."""
    return train_tokenizer(registry.lookup("families", "gpt2"), texts, 320)


@pytest.fixture(scope="session")
def corpus(texts, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    pl.DataFrame({"text": texts[:12], "ended": [index % 2 == 0 for index in range(12)]}).write_parquet(path)
    return path


@pytest.fixture
def train_here(corpus, tmp_path) -> Callable[..., Path]:
    """Run the training of the product on a folder, in this process; returns the finished folder."""
    from unidetox_ray.stages.training import join_alone, run_job

    join_alone("cpu")

    def trained(model: Path, *, steps: int = 1, **more: Any) -> Path:
        loop = LoopSettings(
            steps=steps, lr=1e-3, batch_size=4, seed=1, compile="off", micro_batch=more.pop("micro_batch", 0),
            precision=more.pop("precision", "fp32"),
        )  # fmt: skip
        handle = {"path": str(model), "revision": None, "key": "k", "family": "any", "name": model.name}
        folder = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        values: dict[str, Any] = {"dropout": 0.0, "adapter": None, **more}
        job = Job(
            name="job", key="k", folder=str(folder), family="any", model=handle, texts=str(corpus), loop=asdict(loop),
            max_length=48, append_eos=True,
            deepspeed={"stage": 0, "offload": "none", "overlap_comm": False}, checkpoint_every=0, config={}, inputs={},
            settings={"method": "unidetox"}, **values,
        )  # fmt: skip
        run_job(job, "cpu", 0, 1, lambda values: None)
        return folder

    return trained
