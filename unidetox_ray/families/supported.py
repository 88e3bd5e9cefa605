"""Which models are causal language models that can be trained and decoded here; for others, one line that says why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unidetox_ray import registry
from unidetox_ray.errors import ConfigError, ModelError
from unidetox_ray.families.agreement import evaluating
from unidetox_ray.families.positions import positions_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: A logit may change by this share of the largest when later tokens do: rounding, in float32.
_TOLERANCE = 1e-3
#: So many tokens, with others behind them and without.
_BEGINNING = 5
#: Tables of positions lose at most so many to padding (RoBERTa's kind loses two or more).
_LOST_POSITIONS = 8
_ACCEPTED = "give a causal (decoder-only) language model"


def refuse_unsupported(config: PretrainedConfig, name: str) -> None:
    """ModelError for a config whose model predicts no text from left to right; opens no weights. name: for the message."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    kind = str(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {name}: model type {kind!r} is an encoder-decoder, which reads a text and writes another; {_ACCEPTED}"
        )
    if getattr(config, "is_decoder", None) is False and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        raise ModelError(
            f"model {name}: model type {kind!r} is an encoder, which sees the whole text at once and continues none; {_ACCEPTED}"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"model {name}: transformers knows no causal language model of model type {kind!r}; {_ACCEPTED}"
        )
    if quantized := getattr(config, "quantization_config", None):
        how = quantized.get("quant_method") if isinstance(quantized, dict) else type(quantized).__name__
        raise ModelError(
            f"model {name}: its weights are quantised ({how}), which cannot be trained; give the model it was made from"
        )


def refuse_not_causal(model: Any, name: str) -> None:
    """ModelError where a token's prediction changes with the tokens behind it, tried on random ids: with others there, and
    with none.

    model: a loaded language model. Registered families are known to be causal and are not tried.
    """
    import torch

    from unidetox_ray.core.attending import REFUSALS

    if any(
        registry.lookup("families", each).model_type == model.config.model_type
        for each in registry.names("families")
    ):
        return
    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(rows, (2, 2 * _BEGINNING), generator=torch.Generator().manual_seed(0))
    ids[1, :_BEGINNING] = ids[0, :_BEGINNING]
    with evaluating(model), torch.no_grad():
        try:
            texts = [ids, ids[:1, :_BEGINNING]]
            logits = torch.cat(
                [
                    model(input_ids=text.to(model.device), use_cache=False).logits[:, :_BEGINNING].float()
                    for text in texts
                ]
            )
        except REFUSALS as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            raise ModelError(
                f"model {name}: cannot predict the next token of a text ({said}); {_ACCEPTED}"
            ) from error
    gap = float((logits[1:] - logits[:1]).abs().max() / logits.abs().max().clamp(min=1e-6))
    if not gap <= _TOLERANCE:
        raise ModelError(
            f"model {name}: what a {type(model).__name__} predicts for a token changes with the tokens behind it, so it "
            f"cannot continue a text; {_ACCEPTED}"
        )


def refuse_too_long(model: Any, length: int, name: str) -> None:
    """ConfigError where texts of `length` tokens are more than the model can read, with the length that it can.

    A config may name more positions than the model has for text. Tried on the CPU, and only near that number: on a GPU, a
    position that is not there would end the process.
    """
    known = positions_of(model.config)
    if known is None or length <= known - _LOST_POSITIONS or _reads(model, length):
        return
    shorter = range(length - 1, max(1, length - 2 * _LOST_POSITIONS), -1)
    fits = next((each for each in shorter if _reads(model, each)), None)
    if fits is not None:
        raise ConfigError(
            f"model {name}: cannot read {length} tokens, though its config names {known} positions; name max_length={fits}"
        )


def _reads(model: Any, length: int) -> bool:
    import torch

    with evaluating(model), torch.no_grad():
        try:
            # Not the padding's id, which some models give no position of its own.
            pad = getattr(model.config, "pad_token_id", None)
            ids = torch.full((1, length), 1 if pad != 1 else 2, device=model.device)
            model(input_ids=ids, use_cache=False)
        except (RuntimeError, IndexError):
            return False
    return True
