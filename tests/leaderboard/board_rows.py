"""Rows of results.json by hand: two families, numbers that can be checked in the head."""

from __future__ import annotations

from typing import Any


def numbers(value: float | None, base: float | None = None, spread: float = 0.1) -> dict[str, Any]:
    """A metric with a paired interval of this half-width."""
    diff = None if value is None or base is None else value - base
    return {
        "value": value, "ci_low": None if value is None else value - spread, "ci_high": None if value is None else value + spread,
        "n": 10, "failed": 0, "diff": diff, "diff_low": None if diff is None else diff - spread,
        "diff_high": None if diff is None else diff + spread,
    }  # fmt: skip


def made(
    family: str, method: str, tp: float | None, ppl: float | None, clean: float | None, *, base: float | None = 0.9,
    kind: str = "corpus", seed: int = 1, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """A row whose tp_all, ppl and clean_ppl are given; base: the family's tp_all."""
    reference = None if method == "base" else base
    metrics = {
        "tp_all": numbers(tp, reference), "emt_all": numbers(tp, reference), "ppl": numbers(ppl), "clean_ppl": numbers(clean),
        "dist2": numbers(0.5), "mmlu": numbers(0.6), "tp_all@words": numbers(tp), "tp_id": numbers(tp),
    }  # fmt: skip
    return {
        "cell": f"{family}-{method}-s{seed}", "family": family, "model": "tiny", "method": method, "seed": seed,
        "settings": {"kind": kind}, "status": "ok", "error": None, "scorer": "main", "domains": {}, "metrics": metrics,
        "costs": {"decode_tokens_per_second": 100.0, "decode_relative_cost": 1.0, "trainable_parameters": 7, "extra_memory_gib": 0.5,
                  "device": "cpu"},
        **changes,
    }  # fmt: skip


def failed(family: str, method: str, seed: int = 1) -> dict[str, Any]:
    return made(
        family, method, None, None, None, seed=seed, status="failed", error="out of memory", metrics={}, costs={"device": "cpu"}
    )  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Base, a corpus method that lowers toxicity in both families, a decoding method that does in one of them."""
    slow = {"decode_relative_cost": 4.0, "decode_tokens_per_second": 25.0}
    found = []
    for family, clean in (("gpt2", 10.0), ("opt", 20.0)):
        found += [
            made(family, "base", 0.9, 20.0, clean, kind="unchanged"),
            made(family, "corpus", 0.5, 30.0, clean * 1.2),
            made(family, "decoding", 0.2 if family == "gpt2" else 0.95, 25.0, clean * 5, kind="decoding", costs=slow),
        ]  # fmt: skip
    return found
