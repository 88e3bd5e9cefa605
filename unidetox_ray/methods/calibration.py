"""`calibration` (Tian et al. 2025, arXiv 2506.01266): a small model of safe text, fused with the base model's output layer.

u = LN(h_cal A), h' = alpha u + (1 - alpha) h_base, and then the base model's own head (shared notes E.1). h_cal is the
last hidden state of a small calibration model trained on safe text: the first layers of the family's own base, or any
model with its tokenizer. It reads the whole text with a cache of its own; the released code shows it the last token alone
from the second step on (E.6, pitfall 1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from unidetox_ray.methods.base import NOTHING, DecodingMethod, FitTexts, Need
from unidetox_ray.settings import Count, Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

    from unidetox_ray.core.steering import Steering

ALIGNMENT, FACTS = "alignment.safetensors", "calibration.json"
#: Texts that the sizes of u and h_base are measured on.
_MEASURED = 64


class Settings(Section):
    alpha: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.3
    """The dial: the calibration model's share of the hidden state. 0: the base model. 0.3: the middle of the released
    sweep, which names no choice (0 to 0.6; shared notes E.1). Not comparable between models: read u_norm, base_norm."""
    layer_norm: bool | None = None
    """Scale u to mean 0 and variance 1. null: where there is a map, as released (E.1)."""
    layers: Count = 3
    """Of the family's base, from its embeddings up; all where it has no more (E.2)."""
    model: str | None = None
    """A calibration model of one's own in place of those layers: a folder or hub id whose tokenizer is the base's;
    `{family}` stands for the family's name. It is trained like them; steps: 0 takes it as it is."""
    epochs: Count = 3
    """Over the training part of data.clean (E.2)."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Overrides epochs; 0: no training, a check of what the cut alone does."""
    lr: Positive = 1e-5
    """At the start; it falls linearly to 0 (E.2)."""
    batch_size: Count = 56
    """Texts a step (E.2)."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens of a text, at most the model's positions; longer ones are cut. Ours (E.2: 4,096)."""
    alignment: Literal["contrastive", "least_squares", "none"] = "contrastive"
    """How A is fitted. contrastive: on input embeddings (E.3). least_squares: between the hidden states that it is
    used on (ours; E.6, pitfall 3). none: A is the identity, for models of one width."""
    alignment_epochs: Count = 5
    """contrastive: passes over the vocabulary (E.3)."""
    alignment_lr: Positive = 1e-3
    """contrastive: of Adam, constant (E.3)."""
    alignment_on: Literal["untrained", "trained"] = "untrained"
    """least_squares: whose h_cal A is fitted to. untrained: the calibration model's before it saw the safe text, so that
    A carries over what the training changes; a map of the trained states undoes most of it (ours, measured)."""
    alignment_texts: Count = 256
    """least_squares: how many of the clean texts; together they should hold more tokens than the model is wide (ours)."""


#: What shapes the fit; the others only say how it is used.
FIT_SETTINGS = frozenset(Settings.model_fields) - {"alpha", "layer_norm"}


def narrowed(settings: Any) -> frozenset[Need]:
    return frozenset({"fit"}) if settings.alpha else NOTHING


def fit(
    model: Any, tokenizer: Any, texts: FitTexts, settings: Any, folder: Path, device: str, seed: int
) -> dict[str, Any]:
    """Trains the calibration model on `texts.clean`, fits A, and writes both into `folder`.

    The folder opens by `from_pretrained`; alignment.safetensors holds A as "mapping" (C, H), float32; calibration.json
    what it belongs to. model: the base, in evaluation mode; it is not changed. ModelError: another tokenizer, unequal
    widths without a map. DataError: no text of two tokens. StageError: the training came to no finite number.
    """
    from safetensors.torch import save_file

    from unidetox_ray.artifacts import write_json
    from unidetox_ray.core.identity import model_identity
    from unidetox_ray.families.loading import special_ids

    started = time.perf_counter()
    small = _untrained(model, tokenizer, settings, device)
    rows = _rows(tokenizer, texts.clean, min(settings.max_length, _positions(model), _positions(small)))
    pad_id = special_ids(tokenizer, model.config).pad
    early = settings.alignment == "least_squares" and settings.alignment_on == "untrained"
    losses = [] if early else _train(small, rows, pad_id, settings, seed)
    mapping, facts = _aligned(model, small, tokenizer, rows, pad_id, settings, seed)
    if early:
        losses = _train(small, rows, pad_id, settings, seed)
    facts |= _sizes(model, small, mapping, rows, pad_id, seed)
    facts |= {
        "trainable_parameters": sum(weight.numel() for weight in small.parameters())
        + (mapping.numel() if settings.alignment != "none" else 0),
        "layers": int(small.config.get_text_config(decoder=True).num_hidden_layers),
        "texts": len(rows), "steps": len(losses), "losses": _thinned(losses),
        "first_loss": losses[0] if losses else None, "final_loss": losses[-1] if losses else None,
        "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({"mapping": mapping.contiguous()}, folder / ALIGNMENT)
    belongs = {"method": METHOD.name, "model_identity": model_identity(model), "seed": seed}
    chosen = {name: getattr(settings, name) for name in sorted(FIT_SETTINGS)}
    write_json(folder / FACTS, {**belongs, "settings": chosen})
    return facts


def _untrained(model: Any, tokenizer: Any, settings: Any, device: str) -> Any:
    """The calibration model before its training, float32."""
    from unidetox_ray.core.steering import check_tokenizers
    from unidetox_ray.families.loading import family_of, load_model, load_tokenizer
    from unidetox_ray.families.shallow import first_layers

    if settings.model is None:
        return first_layers(model, settings.layers)
    place = str(settings.model).replace("{family}", family_of(model.config, tokenizer).name)
    check_tokenizers({"base": tokenizer, "calibration": load_tokenizer(place)})
    return load_model(place, dtype="float32", device=device)


def _rows(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Token ids: a BOS where the tokenizer puts one, the whole text, an end token."""
    from unidetox_ray.errors import DataError
    from unidetox_ray.families.loading import encode, special_ids

    end = special_ids(tokenizer, None).eos
    ends = [] if end is None else [end]
    encoded = (encode(tokenizer, text, bos="auto") for text in texts if text.strip())
    rows = [[*ids, *ends][:longest] for ids in encoded if ids]
    rows = [ids for ids in rows if len(ids) > 1]
    if not rows:
        raise DataError(
            f"data.clean: none of its {len(texts)} training texts has two tokens; calibration learns from them"
        )
    return rows


def _positions(model: Any) -> int:
    """How many positions the model knows, as far as its config says."""
    known = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return known if isinstance(known, int) and known > 1 else 1 << 30


def _train(small: Any, rows: list[list[int]], pad_id: int, settings: Any, seed: int) -> list[float]:
    """Ordinary causal language modelling, without dropout (E.2's models have none). The loss of every step."""
    from unidetox_ray.core.loop import LoopSettings, NonFiniteLoss, PlainStepper, train
    from unidetox_ray.errors import StageError

    steps = settings.steps
    if steps is None:
        steps = settings.epochs * math.ceil(len(rows) / settings.batch_size)
    if not steps:
        return []
    recipe = LoopSettings(
        steps=steps, lr=settings.lr, batch_size=settings.batch_size, seed=seed, compile="off"
    )
    stepper = PlainStepper(small, recipe)
    small.eval()
    try:
        return list(train(stepper, rows, pad_id, recipe).loss)
    except NonFiniteLoss as error:
        raise StageError(f"the calibration model's {error}") from None


def _aligned(
    model: Any, small: Any, tokenizer: Any, rows: list[list[int]], pad_id: int, settings: Any, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """A, (C, H) float32 on the CPU, and what its fit came to."""
    import torch

    from unidetox_ray.core.alignment import (
        ContrastiveRecipe,
        contrastive_map,
        final_states,
        least_squares_map,
    )
    from unidetox_ray.errors import ModelError

    widths = [int(each.get_output_embeddings().weight.shape[1]) for each in (small, model)]
    if settings.alignment == "none":
        if widths[0] != widths[1]:
            raise ModelError(
                f"calibration: alignment none needs models of one width; the calibration model has {widths[0]}, the "
                f"base {widths[1]}; take least_squares or contrastive"
            )
        return torch.eye(widths[0]), {}
    if settings.alignment == "least_squares":
        chosen = _some(rows, settings.alignment_texts, seed)
        states = [final_states(each, chosen, pad_id) for each in (small, model)]
        mapping, rest = least_squares_map(*states)
        return mapping, {"alignment_rest": rest, "alignment_tokens": len(states[0])}
    ids = sorted(set(tokenizer.get_vocab().values()))
    tables = [each.get_input_embeddings().weight.detach() for each in (small, model)]
    if [table.shape[1] for table in tables] != widths:
        raise ModelError(
            "calibration: alignment contrastive needs input embeddings as wide as the hidden states; take least_squares"
        )
    recipe = ContrastiveRecipe(seed, settings.alignment_epochs, settings.alignment_lr)
    mapping, losses = contrastive_map(tables[0][ids], tables[1][ids], recipe)
    return mapping, {"alignment_losses": _thinned(losses), "alignment_tokens": len(ids)}


def _sizes(
    model: Any, small: Any, mapping: Tensor, rows: list[list[int]], pad_id: int, seed: int
) -> dict[str, float]:
    """Mean norms of h_cal A (u without the layer norm), of u and of h_base; without them alpha says little (E.6, 4)."""
    from unidetox_ray.core.alignment import final_states
    from unidetox_ray.core.fused import Blend

    chosen = _some(rows, _MEASURED, seed)
    mapped = final_states(small, chosen, pad_id).float() @ mapping
    hidden = final_states(model, chosen, pad_id).float()
    found = {"mapped_norm": mapped, "normed_norm": Blend(1.0).scaled(mapped), "base_norm": hidden}
    return {name: float(states.norm(dim=1).mean()) for name, states in found.items()}


def _some(rows: list[list[int]], count: int, seed: int) -> list[list[int]]:
    from unidetox_ray.core.streams import generator

    kept = sorted(generator("calibration", seed).permutation(len(rows))[:count].tolist())
    return [rows[index] for index in kept]


def _thinned(values: list[float]) -> list[float]:
    """At most 50 of them, evenly spread, the first among them."""
    return values[:: -(-len(values) // 50) or 1]


def _normalised(settings: Any) -> bool:
    return bool(settings.alignment != "none" if settings.layer_norm is None else settings.layer_norm)


def told(settings: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Mean ||u|| and ||h_base|| on clean text."""
    if not settings.alpha:
        return {}
    size = facts["normed_norm" if _normalised(settings) else "mapped_norm"]
    return {"u_norm": size, "base_norm": facts["base_norm"]}


def steering(
    settings: Any, models: Mapping[str, Any], tokenizers: Mapping[str, Any], fit_folder: Path | None
) -> Steering:
    """The base with the calibration model fused into its last hidden state; at alpha 0 the base alone. ModelError, one
    line: no fit, or one of other weights, settings or another tokenizer."""
    from unidetox_ray.core.fused import Blend, Fusion, with_map
    from unidetox_ray.core.steering import Steering, check_tokenizers
    from unidetox_ray.families.loading import load_model, load_tokenizer
    from unidetox_ray.methods.fits import facts_of_fit, refuse_other_fit

    base = models["base"]
    if not settings.alpha:
        return Steering((base,))
    folder, facts = facts_of_fit("calibration", fit_folder, "alpha 0", FACTS)
    refuse_other_fit("calibration", folder, facts, base, settings)
    check_tokenizers({"base": tokenizers["base"], "calibration": load_tokenizer(str(folder))})
    weight = next(base.parameters())
    small = load_model(str(folder), dtype=str(weight.dtype).removeprefix("torch."), device=str(weight.device))
    small = with_map(small, _mapping(folder)).requires_grad_(False)
    return Steering((base,), fusions=(Fusion(small, Blend(settings.alpha, _normalised(settings))),))


def _mapping(folder: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from unidetox_ray.errors import ModelError

    try:
        return load_file(folder / ALIGNMENT)["mapping"]
    except (SafetensorError, OSError, KeyError) as error:
        raise ModelError(
            f"calibration: {folder.name}/{ALIGNMENT} cannot be read ({str(error)[:80]}); delete the folder and run again"
        ) from None


METHOD = DecodingMethod(
    name="calibration",
    summary="blend the last hidden state with that of a small model of safe text before the head",
    settings=Settings,
    needs=frozenset({"fit"}),
    narrowed=narrowed,
    strength="alpha",
    steering=steering,
    fit=fit,
    fit_settings=FIT_SETTINGS,
    told=told,
)
