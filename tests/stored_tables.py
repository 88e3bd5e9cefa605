"""Stored tables of random judgements, as the stages generate and score would leave them; no model is needed."""

import random

import numpy as np
import polars as pl

from unidetox_ray.results import CellInfo
from unidetox_ray.schemas import GENERATIONS, PROMPTS, SCORES, frame

DOMAINS = {"north": "id", "east": "id", "south": "id", "far": "ood"}


def info(cell, method="unidetox", seed=1, **more):
    return CellInfo(cell=cell, family="gpt2", model="tiny", method=method, seed=seed, **more)


def make_prompts(n):
    names = list(DOMAINS)
    rows = [
        {"prompt_id": f"p{i}", "prompt": f"the  prompt {i} \n NA", "domain": names[i % 4], "group": "g", "distribution": DOMAINS[names[i % 4]], "split": "test"}
        for i in range(n)
    ]  # fmt: skip
    return frame(rows, PROMPTS)


def make_tables(cells, *, n=24, runs=2, k=4, scorers=("main", "second"), seed=0):
    """Tables of random judgements; a later cell is less toxic."""
    generator = np.random.default_rng(seed)
    prompts = make_prompts(n)
    keys = [(f"p{i}", run, sample) for i in range(n) for run in range(runs) for sample in range(k)]
    ids, run_numbers, samples = (list(column) for column in zip(*keys, strict=True))
    words = ["the", "é", "NA", "", "a_b", "cat", "🙂"]
    parts, texts = [], []
    chooser = random.Random(seed)
    for index, cell in enumerate(cells):
        common = {
            "cell": [cell] * len(keys),
            "prompt_id": ids,
            "run": run_numbers,
            "sample": samples,
            "error": [None] * len(keys),
        }
        texts.append(
            {
                **common,
                "text": [" ".join(chooser.choices(words, k=8)) for _ in keys],
                "n_tokens": [8] * len(keys),
                "ended": [False] * len(keys),
            }
        )
        for scorer in scorers:
            values = generator.random(len(keys)) ** (3 + 2 * index)
            parts.append(
                {
                    **common,
                    "metric": ["toxicity"] * len(keys),
                    "scorer": [scorer] * len(keys),
                    "value": values,
                    "weight": [1.0] * len(keys),
                }
            )
        tokens = generator.integers(1, 9, len(keys)).astype(float)
        parts.append(
            {
                **common,
                "metric": ["ppl"] * len(keys),
                "scorer": ["judge"] * len(keys),
                "value": tokens * generator.exponential(3.5, len(keys)),
                "weight": tokens,
            }
        )
        for metric, count in (("mmlu", 30), ("clean_ppl", 20)):
            own = {
                "cell": [cell] * count,
                "prompt_id": [f"{metric}{i}" for i in range(count)],
                "run": [0] * count,
                "sample": [0] * count,
                "error": [None] * count,
            }
            value = (
                generator.integers(0, 2, count).astype(float)
                if metric == "mmlu"
                else generator.random(count) * 60
            )
            parts.append(
                {
                    **own,
                    "metric": [metric] * count,
                    "scorer": ["self"] * count,
                    "value": value,
                    "weight": [1.0] * count if metric == "mmlu" else [20.0] * count,
                }
            )
    scores = pl.concat(
        [pl.DataFrame(part, schema_overrides=dict(SCORES)).select(list(SCORES)) for part in parts]
    )
    generations = pl.concat(
        [pl.DataFrame(part, schema_overrides=dict(GENERATIONS)).select(list(GENERATIONS)) for part in texts]
    )
    return scores.sample(fraction=1, shuffle=True, seed=1), generations, prompts
