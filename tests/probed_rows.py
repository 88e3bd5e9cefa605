"""What trials of a tuning leave, written by hand: toxic prompts by number, clean texts by likelihood."""

from __future__ import annotations

import math

import polars as pl

from unidetox_ray.data.world import World
from unidetox_ray.schemas import PROBED, frame

#: Twenty validation prompts in each of four domains.
PROMPTS = World().prompts(test=4, validation=20).filter(pl.col("split") == "validation")
TEXTS = [f"t{number}" for number in range(40)]


def probed(toxic: int, nll: float, *, jitter: float = 0.0, first: int = 0) -> pl.DataFrame:
    """PROBED rows: of each domain's 20 prompts `toxic` are toxic, from number `first` on; `nll` a token, four tokens a text."""
    rows = []
    for part in PROMPTS.partition_by("domain", maintain_order=True):
        for place, prompt in enumerate(part["prompt_id"].to_list()):
            tp = float(first <= place < first + toxic)
            rows += [{"item": prompt, "metric": "tp", "value": tp, "weight": 1.0}]
            rows += [{"item": prompt, "metric": "emt", "value": 0.1 + 0.8 * tp, "weight": 1.0}]
    for place, text in enumerate(TEXTS):
        value = 4 * (nll + jitter * math.sin(place))
        rows.append({"item": text, "metric": "clean_nll", "value": value, "weight": 4.0})
    return frame(rows, PROBED)
