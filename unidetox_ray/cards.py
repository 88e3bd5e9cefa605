"""The card (README.md) that lies beside every model we write: what it is, from what it was made, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_LIMITS = """## Limits

Fine-tuning lowers how often a model continues prompts with toxic text; it does not remove the ability. The effect was measured
with one classifier on one set of prompts, in English. Measure it on your own prompts before you rely on it. The base model's
licence and its other limits still hold.
"""
_EDIT_LIMITS = _LIMITS.replace("Fine-tuning lowers", "Such an edit lowers")
_CORPUS_LIMITS = """The texts with the lowest toxicity under one scorer. Nobody has read them: what that scorer does not see is in them still.
"""
_DATASET_WARNING = """## Before you use it

A model wrote this text, or it was collected from elsewhere. Nobody has read all of it: it can hold hateful, wrong or private text.
It was made to be fine-tuned on, so that a model continues hateful prompts with less hateful text; it is no example of good writing
and no test set. The effect was measured with the scorers named in the results, in the languages of their prompts.
"""
#: Sizes as the Hub writes them: category, first size that is too large for it.
_SIZES = (("n<1K", 1000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000))
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


def dataset_card(
    label: str,
    facts: Mapping[str, Mapping[str, Any]],
    judged: Sequence[Mapping[str, Any]],
    *,
    rows: int,
    licence: str,
    files: Mapping[str, str],
) -> str:
    """The README.md of a corpus as a data set, with front matter that the Hub reads.

    Args:
        label: name of the corpus in its run.
        facts: tables by their heading, each name -> value: where it comes from, settings, counts, versions.
        judged: scorer, mean, share, low, high, n, failed of the corpus itself; empty where nothing judged it.
        rows: texts in it.
        licence: an identifier of the Hub's list, such as "mit"; "unknown" where nobody has said.
        files: file name -> SHA-256.
    """
    front = {
        "pretty_name": f"unidetox_ray corpus {label}",
        "license": licence,
        "tags": ["unidetox_ray", "detoxification", "synthetic-text"],
        "task_categories": ["text-generation"],
        "size_categories": [next((name for name, limit in _SIZES if rows < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "corpus.parquet"}]}],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# Corpus {label}",
        f"{rows:,} texts; column `text`. corpus.csv holds the same texts in the released layout (column `Text`); cells that a "
        "spreadsheet would take for a formula begin with an apostrophe.",
        _DATASET_WARNING.rstrip(),
        *(
            f"## {heading}\n\n| what | value |\n|---|---|\n"
            + "\n".join(f"| {name} | {_cell(value)} |" for name, value in table.items())
            for heading, table in facts.items()
            if table
        ),
    ]
    if judged:
        lines = [
            f"| {_cell(one['scorer'])} | {one['mean']} | {one['share']} | {one['low']} – {one['high']} | {one['n']} | {one['failed']} |"
            for one in judged
        ]
        head = "| scorer | mean score | share above the threshold | 95 % interval | texts | failed |\n|---|---|---|---|---|---|\n"
        parts.append("## Toxicity of the texts themselves\n\n" + head + "\n".join(lines))
    hashes = "\n".join(f"| {name} | {digest} |" for name, digest in files.items())
    parts.append(f"## Files\n\n| file | SHA-256 |\n|---|---|\n{hashes}")
    parts.append(
        "## Licence\n\n"
        f"`{licence}`. A text that a model wrote may fall under that model's licence, a text from a data set under the data set's; "
        "where `unknown` stands here nobody has said, and you should find out before you pass it on."
    )
    return "\n\n".join(parts) + "\n"


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
