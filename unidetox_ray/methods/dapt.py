"""`dapt` (Gururangan et al., ACL 2020; Gehman et al. 2020): fine-tune on the least toxic share of a curated corpus.

The baseline of `sgeat` that samples nothing: the paper's is the lowest-toxicity 2 % of OpenWebText (shared notes D.3).
"""

from __future__ import annotations

from typing import Literal

from unidetox_ray.methods.base import CorpusMethod
from unidetox_ray.methods.clean_text import recipe
from unidetox_ray.methods.filtered import Filtered, training
from unidetox_ray.settings import Share


class Settings(Filtered):
    source: str | None = None
    """A file or folder of curated text (txt, csv, tsv, jsonl, json, parquet); null: the training part of data.clean."""
    keep: Share = 0.02
    """Share of all documents that is kept, the least toxic (Gehman et al. 2020: 2 %)."""
    fill: Literal["tokens", "documents"] = "tokens"
    """How kept documents become texts, as in `clean_text`. tokens: joined until a text is full. documents: one a text."""


METHOD = CorpusMethod(
    name="dapt",
    summary="fine-tune on the least toxic share of a curated clean corpus",
    settings=Settings,
    source="select",
    recipe=recipe,
    training=training,
)
