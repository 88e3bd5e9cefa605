"""A store as a run of two families and three methods leaves it, written by the tracking code itself; no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from unidetox_ray.tracking import log_results, open_tracker

STUDY = "unidetox/small"
FAMILIES, METHODS = ("gpt2", "llama"), {"base": 0.95, "samples": 0.9, "unidetox": 0.125}
PROMPTS_SHA = "fedcba9876543210" * 4
SHA = "0123456789abcdef" * 4


def metric(value: float) -> dict[str, Any]:
    part = {"value": value, "ci_low": value - 0.05, "ci_high": value + 0.05, "n": 40, "failed": 0}
    return {**part, "diff": value - 0.95, "diff_low": value - 1, "diff_high": value - 0.9}


def row(family: str, method: str, toxicity: float) -> dict[str, Any]:
    values = dict.fromkeys(("tp_id", "tp_ood", "tp_all", "emt_id", "emt_ood", "emt_all"), toxicity)
    values |= {"ppl": 8.0, "clean_ppl": 2.0, "mmlu": 0.5, "dist2": 0.4}
    return {
        "cell": f"{family}-{method}-s1", "family": family, "model": f"scratch:{family}", "method": method, "seed": 1,
        "status": "ok", "error": None, "scorer": "words", "settings": {"lr": 1e-3, "kind": "corpus"},
        "metrics": {name: metric(value) for name, value in values.items()},
        "domains": {"rivers": {"distribution": "id", "tp": metric(toxicity), "emt": metric(toxicity)}},
        "costs": {"train_seconds": 2.0, "device": "cpu"},
    }  # fmt: skip


def write_store(folder: Path) -> str:
    """Record the run in `folder`/mlflow.db; returns the store's address."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    folder.mkdir(parents=True, exist_ok=True)
    corpus, prompts, card = (folder / name for name in ("corpus.parquet", "prompts.parquet", "README.md"))
    pl.DataFrame({"prompt_id": ["a"], "prompt": ["Most velks are"]}).write_parquet(prompts)
    pl.DataFrame({"text": ["a", "b"], "n_tokens": [1, 1]}).write_parquet(corpus)
    card.write_text("# A small model\n")
    tags = {"fidelity": "paper", "scorer": "words"}
    with open_tracker(uri, experiment=STUDY) as tracker:
        tracker.begin(key="small", name="small", params={"seed": 1}, tags=tags)
        made = tracker.child(
            "corpus", key="unidetox", name="corpus unidetox", params={"alpha": 0.1}, tags=tags
        )
        for reader in (made, tracker.parent):
            reader.dataset("corpus-unidetox", corpus, SHA, "distil", 2)
        made.end()
        search = tracker.child("search", key="search", name="search", params={}, tags=tags)
        for steps in (10, 20):
            trial = tracker.child(
                "trial",
                key=str(steps),
                name=f"steps={steps}",
                params={"steps": steps},
                tags=tags,
                parent=search,
            )
            trial.metrics({"tp_all": 1 / steps, "clean_ppl": 2.0})
            trial.end()
        search.end()
        rows = [row(family, method, value) for family in FAMILIES for method, value in METHODS.items()]
        for each in rows:
            if each["method"] == "base":
                continue
            who = {name: each[name] for name in ("family", "method", "seed")}
            cell = tracker.child(
                "cell", key=each["cell"], name=each["cell"], params=each["settings"], tags=who
            )
            cell.model(each["cell"], card=card, params=each["settings"], tags=who)
            cell.history("loss", [(step, 3 / (step + 1)) for step in range(10)])
            cell.dataset("corpus-unidetox", corpus, SHA, "train", 2)
            cell.dataset("prompts", prompts, PROMPTS_SHA, "eval", 1)
        log_results(tracker, rows, tags=tags)
    return uri
