"""Costs of cells from manifests: what is measured is there, what is not is absent, and nothing is guessed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unidetox_ray.experiment import MethodEntry
from unidetox_ray.stages.cells import Cell
from unidetox_ray.stages.costs import costs_of
from unidetox_ray.stages.generate import decode_costs

GIB = 1 << 30


def cell(family: str, method: str, **changes: Any) -> Cell:
    entry = MethodEntry(method=method, label=changes.pop("label", method))
    made = Cell(f"{family}-{entry.label}-s1", family, entry, 1, {"name": family})
    made.model = {"path": family}
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def manifest(**extra: Any) -> Any:
    return SimpleNamespace(seconds=12.0, extra=extra)


def training(**changes: Any) -> Any:
    values = {
        "train_seconds": 3.0,
        "train_tokens": 900,
        "device": "cuda:0",
        "speed": {"step_ms": 5.0},
        "trainable_parameters": 124,
    }
    return manifest(**values | changes)  # fmt: skip


def decoded(seconds: float, weights: int, extra: int | None = None) -> dict[str, Any]:
    return {"seconds": seconds, "weight_bytes": weights, "extra_bytes": extra}


def costs(cells: list[Cell], decode: dict[str, Any], tokens: int = 1000) -> dict[str, dict[str, Any]]:
    generated = manifest(tokens={each.name: tokens for each in cells}, decode=decode)
    return costs_of(cells, generated, manifest())


def test_each_kind_of_cell_has_what_it_cost() -> None:
    cells = [
        cell("gpt2", "base"),
        cell("gpt2", "unidetox", training=training()),
        cell("gpt2", "lm_steer", fit=manifest(trainable_parameters=64, fit_seconds=2.5)),
        cell("gpt2", "dexperts"),
        cell("gpt2", "task_arithmetic", edit=manifest(edit_seconds=1.5, device="cpu")),
    ]
    found = costs(cells, {
        "gpt2-base-s1": decoded(2.0, GIB), "gpt2-unidetox-s1": decoded(2.5, GIB + GIB // 4), "gpt2-lm_steer-s1": decoded(2.2, GIB, 8192),
        "gpt2-dexperts-s1": decoded(6.0, GIB, 2 * GIB), "gpt2-task_arithmetic-s1": decoded(1.6, GIB),
    })  # fmt: skip
    names = ("decode_tokens_per_second", "decode_relative_cost", "trainable_parameters", "extra_memory_gib")
    assert {name: [found[name][key] for key in names] for name in found} == {
        "gpt2-base-s1": [500.0, 1.0, 0, 0.0],
        "gpt2-unidetox-s1": [400.0, 1.25, 124, 0.25],  # an adapter that stays beside the weights
        "gpt2-lm_steer-s1": [454.5, 1.1, 64, pytest.approx(8192 / GIB, rel=1e-3)],
        "gpt2-dexperts-s1": [166.7, 3.0, 0, 2.0],
        "gpt2-task_arithmetic-s1": [625.0, 0.8, 0, 0.0],
    }
    assert found["gpt2-dexperts-s1"]["decode_seconds"] == 6.0
    assert (
        found["gpt2-unidetox-s1"]["train_step_ms"] == 5.0 and found["gpt2-unidetox-s1"]["device"] == "cuda:0"
    )
    assert found["gpt2-lm_steer-s1"]["fit_seconds"] == 2.5
    assert found["gpt2-task_arithmetic-s1"]["edit_seconds"] == 1.5
    assert {each["generate_seconds"] for each in found.values()} == {2.4}


def test_a_family_is_compared_with_its_own_base_whatever_that_is_called() -> None:
    cells = [
        cell("opt", "base", label="original"),
        cell("gpt2", "base"),
        cell("opt", "dexperts"),
        cell("falcon", "dexperts"),
    ]
    found = costs(cells, {
        "opt-original-s1": decoded(4.0, GIB), "gpt2-base-s1": decoded(1.0, GIB), "opt-dexperts-s1": decoded(8.0, GIB, GIB),
        "falcon-dexperts-s1": decoded(8.0, GIB, GIB),
    })  # fmt: skip
    assert found["opt-dexperts-s1"]["decode_relative_cost"] == 2.0
    # No base in the family: its speed and its own memory are known all the same.
    assert "decode_relative_cost" not in found["falcon-dexperts-s1"]
    assert found["falcon-dexperts-s1"]["extra_memory_gib"] == 1.0


def test_what_was_not_measured_is_absent_and_never_0() -> None:
    lost = cell("gpt2", "unidetox", training=training(), model=None, error="model not opened")
    alone = cell("opt", "unidetox", training=training())
    found = costs(
        [cell("gpt2", "base"), lost, alone],
        {"gpt2-base-s1": decoded(2.0, GIB), "opt-unidetox-s1": decoded(0.0, GIB)},
    )
    assert not [name for name in found["gpt2-unidetox-s1"] if "decode" in name or "memory" in name]
    assert "generate_seconds" not in found["gpt2-unidetox-s1"]
    assert found["gpt2-unidetox-s1"]["trainable_parameters"] == 124  # it was trained before it was lost
    # No base to subtract, and a clock that did not move.
    assert "extra_memory_gib" not in found["opt-unidetox-s1"]
    assert "decode_tokens_per_second" not in found["opt-unidetox-s1"]
    unmade = cell("gpt2", "dexperts", model=None, error="toxic: out of memory")
    assert costs([cell("gpt2", "base"), unmade], {})[unmade.name] == {"device": "cpu"}


def test_the_seconds_of_a_cell_are_the_sum_over_its_orders() -> None:
    orders = [{"id": f"{name}-{part}", "cell": name} for name in ("a", "b", "c") for part in range(2)]
    facts = {
        order["id"]: {"decode_seconds": 0.25, "weight_bytes": 8, "extra_bytes": None} for order in orders
    }
    facts["b-1"] = {}  # decoded nothing
    facts["c-0"]["decode_seconds"] = 1.5
    assert decode_costs(facts, orders) == {
        "a": {"seconds": 0.5, "weight_bytes": 8, "extra_bytes": None},
        "c": {"seconds": 1.75, "weight_bytes": 8, "extra_bytes": None},
    }
