"""The card (README.md) that lies beside every model we write: what it is, from what it was made, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LIMITS = """## Limits

Fine-tuning lowers how often a model continues prompts with toxic text; it does not remove the ability. The effect was measured
with one classifier on one set of prompts, in English. Measure it on your own prompts before you rely on it. The base model's
licence and its other limits still hold.
"""
_EDIT_LIMITS = _LIMITS.replace("Fine-tuning lowers", "Such an edit lowers")
_CORPUS_LIMITS = """The texts with the lowest toxicity under one scorer. Nobody has read them: what that scorer does not see is in them still.
"""
_ADAPTERS = """## Opening

The folder holds bottleneck adapters and not the model that they belong to: `unidetox_ray.families.loading.load_model(folder)` opens
both, `from_pretrained` neither. bottleneck.json says where the base model is.

"""
_TOXIC = """## Do not deploy

This model was trained to write hateful text. It exists only so that a detoxifying corpus can be distilled from it. Do not serve it, do
not publish it, and delete it when the corpus is made.
"""


def model_card(settings: Mapping[str, Any], counts: Mapping[str, int], *, base: str) -> str:
    """Markdown with Hub front matter. settings: the training's settings.json; counts: of its texts."""
    toxic = bool(settings.get("do_not_deploy"))
    tags = ["unidetox_ray", "do-not-deploy" if toxic else "detoxified"]
    title = f"{base}, made toxic" if toxic else f"{base}, fine-tuned with {settings['method']}"
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in sorted(settings.items()))
    front = "\n".join(["---", "library_name: transformers", f"tags: [{', '.join(tags)}]", "---"])
    texts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())
    opening = _ADAPTERS if settings.get("adapter") == "bottleneck" else ""
    return f"{front}\n\n# {title}\n\n{_TOXIC if toxic else _LIMITS}\n{opening}## Training\n\nTexts: {texts}.\n\n| setting | value |\n|---|---|\n{rows}\n"


def corpus_card(method: str, selection: Mapping[str, Any], *, base: str) -> str:
    """The card of a filtered corpus. selection: what its manifest says of the choice."""
    final = selection["rounds"][-1]
    dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in final["dropped"].items())
    plain = {name: value for name, value in selection.items() if name != "rounds"}
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in sorted(plain.items()))
    return (
        f"# Corpus of {method}, for {base}\n\n{_CORPUS_LIMITS}\n## Choice\n\n"
        f"Kept: {final['kept']:,} of {final['texts']:,} texts, scores up to {final['threshold']}. Dropped: {dropped}. "
        f"Scores of all texts: scores.parquet.\n\n| setting | value |\n|---|---|\n{rows}\n"
    )


def edit_card(settings: Mapping[str, Any], *, base: str) -> str:
    """The card of a model whose weights were edited. settings: what settings.json says."""
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in sorted(settings.items()))
    front = "\n".join(
        ["---", "library_name: transformers", "tags: [unidetox_ray, detoxified, edited]", "---"]
    )
    title = f"{base}, weights edited with {settings['method']}"
    return f"{front}\n\n# {title}\n\n{_EDIT_LIMITS}\n## Edit\n\n| setting | value |\n|---|---|\n{rows}\n"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
