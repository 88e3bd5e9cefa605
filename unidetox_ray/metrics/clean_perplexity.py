"""`clean_ppl`: what a cell's own model makes of held-out clean text.

exp(sum of NLL / sum of tokens) over the texts of `data.clean`; `perplexity.text_nll` gives the sums.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from unidetox_ray.metrics.base import Metric, Number, Tables
from unidetox_ray.metrics.items import item_numbers


def measured(tables: Tables) -> Iterator[Number]:
    """`clean_ppl` of every cell; the texts are the clusters."""
    return item_numbers(tables, "clean_ppl", weight=pl.col("weight").fill_null(0.0), transform=np.exp)


METRIC = Metric(
    name="clean_ppl",
    direction="lower",
    range=(1.0, float("inf")),
    unit="perplexity per token",
    description="Pooled perplexity of held-out clean text under the model under test: what detoxifying costs.",
    source="this project",
    measured=measured,
)
