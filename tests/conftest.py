"""Shared by all tests: one torch thread, no hub, no stray tracking store."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Kernels are interpreted where there is no GPU; Triton reads the switch when it is imported first.
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """Real data for development; tests that need it say so and skip where it is absent."""
    place = Path(os.environ.get("UNIDETOX_SHARED", ROOT.parent / "shared"))
    if not (place / "data").is_dir():
        pytest.skip(f"no real data at {place}/data (set UNIDETOX_SHARED)")
    return place


def pytest_addoption(parser):
    """How many random schedules of faults `tests/faults/test_chaos.py` goes through, and which."""
    parser.addoption("--seeds", type=int, default=20, help="chaos: how many seeds")
    parser.addoption("--first-seed", type=int, default=0, help="chaos: the first seed")
