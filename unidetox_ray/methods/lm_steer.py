"""`lm_steer` (Han et al., ACL 2024): a trained linear map moves the hidden state before the head at every step.

h' = h + epsilon s (h P1) P2^T and then the model's own head. P1 and P2 are trained on toxic and clean text with the model
frozen: clean text is to be likely under +epsilon W, toxic text under -epsilon W, with W = P1 P2^T (released code; shared
notes B.1 and B.2). A second, "dummy" steer is trained on all text alike and takes in what both kinds have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from unidetox_ray.methods.base import NOTHING, DecodingMethod, FitTexts, Need
from unidetox_ray.settings import Count, NonNegative, Positive, Section

if TYPE_CHECKING:
    from unidetox_ray.core.steer import Steer
    from unidetox_ray.core.steering import Steering

WEIGHTS, FACTS = "steer.safetensors", "steer.json"


class Settings(Section):
    strength: Annotated[float, Field(allow_inf_nan=False)] = 5.0
    """s, the dial (the paper's detoxification: 5; shared notes B.3). 0: the base model. Negative: towards toxicity.
    Training only sees 1 and -1, so more extrapolates: choose it on validation prompts."""
    epsilon: Positive = 1e-3
    """Size of a step of the steer, in training and at inference (released code; B.2)."""
    rank: Count | None = 1000
    """Columns of P1 and P2 (released code; B.2). null: W itself, which is less to train where rank > hidden size / 2."""
    dummy: bool = True
    """Train a second steer whose value is 1 for every text (released code: yes; B.2)."""
    dummy_value: Literal[0, 1] = 0
    """Its value at inference where s is not 0. 0, ours: what the two kinds of text have in common stays out; the released
    command keeps 1 (B.2)."""
    steps: Count = 1000
    """Of Adam at a constant rate (released code; B.2)."""
    lr: Positive = 1e-2
    """Released code; B.2."""
    batch_size: Count = 32
    """Texts a step (released code; B.2)."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Tokens of a text; longer ones are cut (released code; B.2)."""
    penalty: NonNegative = 0.0
    """lambda: times ||P1||^2 + ||P2||^2, added to the loss (detoxification: 0, sentiment: 1e-6; B.2)."""

    @model_validator(mode="after")
    def _trained_before_it_is_used(self) -> Settings:
        if self.dummy_value and not self.dummy:
            raise ValueError("dummy_value: 1 needs dummy: true, which trains that steer")
        return self


#: Settings that the training takes as they are.
_RECIPE = ("epsilon", "rank", "dummy", "steps", "lr", "batch_size", "penalty")
#: What shapes the fit; the others only say how it is used.
FIT_SETTINGS = frozenset({*_RECIPE, "max_length"})


def narrowed(settings: Any) -> frozenset[Need]:
    return frozenset({"fit"}) if settings.strength else NOTHING


def fit(
    model: Any, tokenizer: Any, texts: FitTexts, settings: Any, folder: Path, _device: str, seed: int
) -> dict[str, Any]:
    """Trains the steers of `model` and writes steer.safetensors (float32) and steer.json into `folder`.

    Both kinds of text get as many texts: the larger is sampled down (B.2). DataError: a kind without a text of two
    tokens. StageError: the training came to no finite number.
    """
    from safetensors.torch import save_file

    from unidetox_ray.artifacts import write_json
    from unidetox_ray.core.identity import model_identity
    from unidetox_ray.core.steer_training import SteerRecipe, train_steer
    from unidetox_ray.families.loading import special_ids

    toxic, clean = (
        _rows(tokenizer, kind, getattr(texts, kind), settings.max_length) for kind in ("toxic", "clean")
    )
    size = min(len(toxic), len(clean))
    rows = [*_sample("toxic", toxic, size, seed), *_sample("clean", clean, size, seed)]
    chosen = {name: getattr(settings, name) for name in _RECIPE}
    trained = train_steer(
        model, rows, [-1] * size + [1] * size, special_ids(tokenizer, model.config).pad, SteerRecipe(**chosen, seed=seed)
    )  # fmt: skip
    steers = {"steer": trained.steer} | ({"dummy": trained.dummy} if trained.dummy else {})
    save_file(
        {
            f"{name}.{part}": tensor.contiguous()
            for name, steer in steers.items()
            for part, tensor in _named(steer).items()
        },
        folder / WEIGHTS,
    )
    hidden = trained.steer.hidden
    write_json(
        folder / FACTS,
        {
            "method": "lm_steer", "model_identity": model_identity(model), "hidden": hidden, "seed": seed,
            "settings": {name: getattr(settings, name) for name in sorted(FIT_SETTINGS)},
        },
    )  # fmt: skip
    facts = {
        "trainable_parameters": trained.parameters, "hidden": hidden, "texts_per_kind": size, "train_tokens": trained.tokens,
        "first_loss": trained.loss[0], "final_loss": trained.loss[-1], "norm": trained.steer.norm(),
        "step_norm": settings.epsilon * trained.steer.norm(), "dummy_norm": trained.dummy.norm() if trained.dummy else None,
    }  # fmt: skip
    if settings.rank is not None and 2 * settings.rank > hidden:
        count = 1 + settings.dummy
        facts["note"] = (
            f"rank {settings.rank} is more than half of the hidden size {hidden}: the factors hold {trained.parameters} numbers, "
            f"the full matrix {count * hidden * hidden}; rank: null trains that"
        )
    return facts


def _rows(tokenizer: Any, kind: str, texts: Any, longest: int) -> list[list[int]]:
    """Token ids of the texts in which there is something to predict, a BOS where the tokenizer puts one, no end token."""
    from unidetox_ray.errors import DataError
    from unidetox_ray.families.loading import encode

    rows = [ids for ids in (encode(tokenizer, text, bos="auto")[:longest] for text in texts) if len(ids) > 1]
    if not rows:
        raise DataError(
            f"data.{kind}: none of its {len(texts)} training texts has two tokens; lm_steer learns from both kinds"
        )
    return rows


def _sample(kind: str, rows: list[list[int]], size: int, seed: int) -> list[list[int]]:
    from unidetox_ray.core.streams import generator

    kept = sorted(generator("lm_steer", kind, seed).permutation(len(rows))[:size].tolist())
    return [rows[index] for index in kept]


def _named(steer: Steer) -> dict[str, Any]:
    names = ("full",) if steer.second is None else ("projector1", "projector2")
    return dict(zip(names, steer.tensors(), strict=True))


def told(settings: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """||epsilon s W||, which a strength alone does not tell (B.6, pitfall 7)."""
    return {"steer_norm": abs(settings.strength) * facts["step_norm"]}


def steering(
    settings: Any, models: Mapping[str, Any], _tokenizers: Mapping[str, Any], fit_folder: Path | None
) -> Steering:
    """The base model with the steer before its head, at s = 0 the base model alone. ModelError, one line: no fit, or one
    of another model, hidden size or settings."""
    from unidetox_ray.core.steer import SteerHook
    from unidetox_ray.core.steering import Steering

    base = models["base"]
    if settings.strength == 0.0:
        return Steering((base,))
    steers = load(fit_folder, base, settings)
    parts = [(steers["steer"], settings.epsilon * settings.strength)]
    if settings.dummy_value:
        parts.append((steers["dummy"], settings.epsilon * settings.dummy_value))
    return Steering((base,), hooks=(SteerHook(parts, next(base.parameters()).device),))


def load(folder: Path | None, base: Any, settings: Any) -> dict[str, Steer]:
    """The steers of a fit, "steer" and, where it has one, "dummy"; see `steering` for what is refused."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from unidetox_ray.core.steer import Steer
    from unidetox_ray.errors import ModelError
    from unidetox_ray.methods.fits import facts_of_fit, refuse_other_fit

    folder, facts = facts_of_fit("lm_steer", folder, "strength 0", FACTS)
    hidden = int(base.get_output_embeddings().weight.shape[1])
    if facts["hidden"] != hidden:
        raise ModelError(
            f"lm_steer: the fit in {folder.name} is of hidden size {facts['hidden']} and the model of {hidden}; "
            "make the fit on this model"
        )
    refuse_other_fit("lm_steer", folder, facts, base, settings)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"lm_steer: {folder.name}/{WEIGHTS} cannot be read ({str(error)[:80]}); delete the folder and run again"
        ) from None
    found: dict[str, list[Any]] = {}
    for name in sorted(tensors):  # projector1 before projector2
        found.setdefault(name.partition(".")[0], []).append(tensors[name])
    return {name: Steer(*parts) for name, parts in found.items()}


METHOD = DecodingMethod(
    name="lm_steer",
    summary="move the hidden state before the head by a linear map trained on toxic and clean text",
    settings=Settings,
    needs=frozenset({"fit"}),
    narrowed=narrowed,
    strength="strength",
    steering=steering,
    fit=fit,
    fit_settings=FIT_SETTINGS,
    told=told,
)
