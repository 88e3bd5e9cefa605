"""`clean_text`: the control that the paper lacks. Fine-tuning on real clean text of the size of the distilled corpus.

Much of what a corpus does to a model may be its register and not its contrast. This control has the budget of the
experiment's corpus section, as many texts of as many tokens, the same training, and text that nobody made for it.
"""

from __future__ import annotations

from typing import Any, Literal

from unidetox_ray.methods.base import CorpusMethod
from unidetox_ray.settings import CorpusSection, Section

#: `CorpusSection.source` of real text from the experiment's own data.
CLEAN = "data.clean"


class Settings(Section):
    source: str | None = None
    """A file or folder of clean text (txt, csv, tsv, jsonl, json, parquet); null: the training part of data.clean."""
    fill: Literal["tokens", "documents"] = "tokens"
    """tokens: documents are joined until a text has corpus.max_length - 1 tokens, and cut there. documents: one a text,
    cut there too; fewer tokens where documents are shorter."""


def recipe(settings: Any, section: CorpusSection) -> CorpusSection:
    return section.model_copy(update={"source": settings.source or CLEAN})


METHOD = CorpusMethod(
    name="clean_text",
    summary="control: fine-tune on real clean text of the corpus's size",
    settings=Settings,
    source="text",
    recipe=recipe,
)
