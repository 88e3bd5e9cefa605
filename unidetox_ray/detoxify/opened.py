"""A model as far as it can be known without its weights; what cannot be detoxified is refused here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unidetox_ray.families.positions import positions_of
from unidetox_ray.plan.counting import skeleton
from unidetox_ray.settings import ModelRef
from unidetox_ray.stages.models import Handle, handle_of


@dataclass(frozen=True)
class Opened:
    """handle: enough to open it anywhere. hub_id: null for a folder."""

    handle: Handle
    model: Any
    """Without numbers (`counting.skeleton`)."""
    model_type: str
    positions: int | None
    hub_id: str | None


def opened(source: str, revision: str | None = None) -> Opened:
    """Checks a model before anything is written. ModelError: missing, gated, or none that could be detoxified."""
    from unidetox_ray.families.loading import check_vocabulary, load_config, load_tokenizer, special_ids
    from unidetox_ray.families.supported import refuse_unsupported

    handle = handle_of(ModelRef(source=source, revision=revision), "model")
    config = load_config(handle["path"], revision)
    refuse_unsupported(config, source)
    tokenizer = load_tokenizer(handle["path"], revision)
    special_ids(tokenizer, config)
    model = skeleton(config, source)
    check_vocabulary(tokenizer, int(model.get_input_embeddings().weight.shape[0]), source)
    kind = str(config.model_type)
    hub_id = None if Path(source).expanduser().is_dir() else source
    return Opened({**handle, "family": kind}, model, kind, positions_of(config), hub_id)
