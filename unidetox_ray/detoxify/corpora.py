"""The text to fine-tune on: published, the user's own, or distilled here from a model and its toxic copy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unidetox_ray.artifacts import Manifest
from unidetox_ray.detoxify.asked import FRESH, PUBLISHED, STAND_IN, Asked
from unidetox_ray.detoxify.published import LICENCE, SOURCE, published
from unidetox_ray.errors import DataError
from unidetox_ray.experiment import MethodEntry
from unidetox_ray.stages.context import Context
from unidetox_ray.stages.models import Handle

LABEL = "detoxified"


@dataclass(frozen=True)
class Source:
    """A corpus that is read and not made. path: the file. texts: how many it holds. told: for the card."""

    path: Path
    texts: int
    told: dict[str, Any]


def source_of(asked: Asked) -> Source | None:
    """The corpus file, read and checked; None for one that is to be distilled. DataError."""
    from unidetox_ray.data.text import read_corpus

    if asked.corpus == FRESH:
        return None
    if asked.corpus == PUBLISHED:
        path = published(asked.data_root)
        told = {"source": f"the published corpus of UniDetox ({SOURCE})", "licence": LICENCE}
    else:
        path = Path(asked.corpus).expanduser()
        told = {"source": path.name}
    loaded = read_corpus(path)
    told |= {"file_sha256": loaded.sha256, **loaded.notes}
    return Source(Path(os.path.normpath(path.absolute())), loaded.table.height, told)


def entry_of(source: Source | None) -> MethodEntry:
    """The method entry of the corpus and of the cell that trains on it."""
    settings = {} if source is None else {"source": str(source.path), "num_texts": source.texts}
    return MethodEntry(method="unidetox", label=LABEL, settings=settings)


def corpus_of(context: Context, source: Source | None, base: Handle) -> tuple[Path, Manifest, dict[str, Any]]:
    """(folder, manifest, what the card says of it). base: the model that a fresh corpus is distilled from."""
    from unidetox_ray.stages import corpus, toxic
    from unidetox_ray.stages.needs import Needed

    entry = entry_of(source)
    if source is not None:
        folder, manifest = corpus.run(context, entry, base, None)
        told = dict(source.told)
    else:
        needed = Needed((("toxic", STAND_IN),), (entry,), frozenset({"toxic"}))
        copies = toxic.run(context, needed, {STAND_IN: base})
        folder, manifest = corpus.run(context, entry, base, copies.of(["toxic"], STAND_IN)["toxic"])
        section, data = context.experiment.corpus, context.experiment.data
        loaded = context.data("toxic", data.toxic)
        told = {
            "source": f"distilled from {base['name']} and a copy of it made toxic", "toxic_text": loaded.where,
            "toxic_text_sha256": loaded.sha256, "alpha": section.alpha, "beta": str(section.beta),
            "max_length": section.max_length, "seed": section.seed,
            "toxic_training": context.experiment.toxic.model_dump(
                mode="json", include={"epochs", "steps", "lr", "batch_size", "precision", "max_length", "seed"}
            ),
        }  # fmt: skip
    told |= {"texts": manifest.counts["ok"], "sha256": manifest.extra["sha256"]}
    if told["texts"] < 1:
        raise DataError(f"--corpus {source.path.name if source else FRESH}: holds no text to train on")
    return folder, manifest, told
