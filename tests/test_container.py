"""The memory that a container allows is what everything plans with."""

from __future__ import annotations

import os

import pytest
import torch

from unidetox_ray import container
from unidetox_ray.bench.shapes import check_room
from unidetox_ray.core.memory import free_bytes
from unidetox_ray.doctor import Subject, examine
from unidetox_ray.errors import ConfigError
from unidetox_ray.plan import devices

HERE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's memory is its own")


@pytest.fixture
def allow(monkeypatch, tmp_path):
    """Says what a control group of version 2 and of version 1 would; None: no such file."""
    places = (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes")
    monkeypatch.setattr(container, "_LIMITS", tuple(str(place) for place in places))

    def allow(*said: str | None) -> None:
        for place, text in zip(places, said, strict=True):
            if text is None:
                place.unlink(missing_ok=True)
            else:
                place.write_text(text)

    return allow


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        (("1073741824\n", None), 2.0**30),
        ((None, "1073741824\n"), 2.0**30),
        (("max\n", None), float("inf")),
        ((None, None), float("inf")),
        ((None, "9223372036854771712\n"), float(9223372036854771712)),
    ],
)
def test_both_versions_of_control_groups_are_read(allow, said, limit):
    allow(*said)
    assert container.memory_limit() == limit
    assert container.machine_memory() == min(HERE, limit)


@NO_GPU
def test_a_plan_for_this_machine_has_the_containers_memory(allow):
    allow("max", None)
    assert devices.this_machine(devices.stored()).memory == HERE
    allow(str(2**28), None)
    assert devices.this_machine(devices.stored(), 2).memory == 2**28


@NO_GPU
def test_doctor_and_benchmarks_keep_to_it_too(allow):
    allow(str(2**28), None)
    (line,) = examine(Subject(None, "outputs", None), ["memory"])
    assert line.seen.startswith("0.2 GiB") or line.seen.startswith("0.3 GiB")
    with pytest.raises(ConfigError, match=r"cpu has 0;"):
        check_room("gpt2-xl", 1, torch.device("cpu"), 4)
    assert 2**26 <= free_bytes(torch.device("cpu")) <= 2**28
