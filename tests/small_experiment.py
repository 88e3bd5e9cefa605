"""The smallest experiment that measures something: one model made from nothing, judged by a word list; no hub, no tracking."""

from __future__ import annotations

from typing import Any

SCRATCH = {
    "hidden": 32,
    "layers": 1,
    "heads": 2,
    "vocab_size": 320,
    "max_positions": 64,
    "steps": 10,
    "length": 32,
}
WORDS = {"name": "words", "kind": "lexicon", "source": "world"}


def small_experiment(name: str, **changes: Any) -> dict[str, Any]:
    """As the file holds it. changes: whole sections."""
    return {
        "name": name, "base_family": "gpt2", "families": ["gpt2"], "methods": ["base"],
        "models": {"gpt2": {"source": "scratch:", "scratch": SCRATCH}},
        "data": {**dict.fromkeys(("toxic", "prompts", "clean"), "world"), "mmlu": None, "pretrain": ["world"]},
        "corpus": {"num_texts": 16, "max_length": 12}, "finetune": {"steps": 3, "batch_size": 4, "max_length": 16},
        "evaluate": {"continuations": 2, "max_new_tokens": 4, "runs": 1, "ppl_model": None, "clean_max_length": 32, "scorers": [WORDS]},
        "tracking": {"uri": "none"},
        **changes,
    }  # fmt: skip
