"""The card of a detoxified model: what it was, what was done, what was measured, how to open it, what it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_LIMITS = """## Limits

- Fine-tuning lowers how often a model continues prompts with toxic text; it does not remove the ability, and a later
  fine-tuning can bring it back.
- {measured}
- A toxicity classifier has errors and biases of its own: it calls mentions of groups toxic that are not, and misses insults
  without its words. English only, unless the classifier and the prompts were another language's.
- The model may have lost something else. Measure what you need of it before you rely on it.
- The licence and the limits of the base model still hold.
"""
_MEASURED = "Measured with one classifier ({scorer}) on one set of prompts ({prompts}). Other prompts give other numbers."
_UNMEASURED = "Nothing was measured: whether this model is less toxic than its base is not known."
#: What the card and the console show; every other metric is in detoxify.json. Lower is better in all of them.
_NAMES = {
    "tp_all": "toxicity probability (TP)",
    "emt_all": "expected maximum toxicity (EMT)",
    "tp_ood": "TP, out of distribution",
    "emt_ood": "EMT, out of distribution",
    "clean_ppl": "perplexity on clean text",
}
_HOW = {
    "none": "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\nmodel = AutoModelForCausalLM.from_pretrained(FOLDER)\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)\n```\n",
    "adapter": "A peft adapter without its base model; `pip install peft`, and the base model must be at hand.\n\n```python\nfrom peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\nmodel = AutoPeftModelForCausalLM.from_pretrained(FOLDER)\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)\n```\n",
    "bottleneck": "The folder holds bottleneck adapters and not the model that they belong to. `bottleneck.json` says where that model is and\nwhich weights it must have; plain `from_pretrained` does not open such a folder, `unidetox_ray` does, in every verb and here:\n\n```python\nfrom unidetox_ray.families.loading import load_model, load_tokenizer\n\nmodel = load_model(FOLDER)\ntokenizer = load_tokenizer(FOLDER)\n```\n",
}


def card(facts: Mapping[str, Any]) -> str:
    """Markdown with Hub front matter. facts: `detoxify.json`, as `detoxify.run` writes it."""
    base, kind = facts["base"], facts["opening"]
    front = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base["hub_id"]} if base["hub_id"] else {}),
        **({"license": base["licence"]} if re.fullmatch(r"[a-z0-9.-]+", base["licence"] or "") else {}),
        "tags": ["unidetox_ray", "detoxified"],
    }
    head = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items())
    licence = base["licence"] or "not stated beside the base model; look it up before you share this one"
    if base["licence_files"]:
        licence += f" (its {', '.join(base['licence_files'])} copied here)"
    revision = f", revision {base['revision']}" if base["revision"] else ""
    parts = [
        f"---\n{head}\n---\n",
        f"# {base['name']}, detoxified\n",
        f"{base['name']} ({base['model_type']}{revision}) fine-tuned on a detoxifying corpus (UniDetox, Lu et al., ICLR 2025), "
        "meant to continue prompts with less toxic text.\n",
        *_smoke(facts["smoke_run_limit"]),
        f"Licence of the base model: {licence}.\n",
        f"Key of the base model's {'files' if base['hub_id'] is None else 'name and revision'}: {base['key']}.\n",
        f"## Opening\n\n{_HOW[kind]}",
        f"## Measured\n\n{_measurements(facts)}",
        f"## Corpus\n\n{_rows(facts['corpus'])}",
        f"## Training\n\n{facts['fit']['told']}\n\n{_rows(facts['training'])}",
        f"## Made with\n\n{_rows(facts['made_with'])}",
        _LIMITS.format(measured=_limit(facts)),
    ]
    return "\n".join(parts)


def table(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(metric, before, after, difference, n) as text: what a person reads first of all that was measured."""
    shown = []
    for name, title in _NAMES.items():
        entry = metrics.get(name)
        if entry is None:
            continue
        before, after = (_number(entry[side], "value", "ci_low", "ci_high") for side in ("before", "after"))
        failed = entry["before"].get("failed", 0) + entry["after"].get("failed", 0)
        n = f"{entry['after'].get('n')}" + (f", {failed} failed" if failed else "")
        shown.append((title, before, after, _number(entry["after"], "diff", "diff_low", "diff_high"), n))
    return shown


def verdict(metrics: Mapping[str, Any]) -> str:
    """One sentence: whether the model is less toxic on these prompts, as far as they can tell."""
    found = metrics.get("tp_all", {}).get("after", {})
    low, high = found.get("diff_low"), found.get("diff_high")
    if low is None or high is None:
        return "Whether it became less toxic on these prompts is not known: too much could not be judged."
    if high < 0:
        return (
            "On these prompts it became less toxic: the whole interval of the difference in TP lies below 0."
        )
    if low > 0:
        return (
            "On these prompts it became MORE toxic: the whole interval of the difference in TP lies above 0."
        )
    return "On these prompts no change of TP can be told from chance: the interval of the difference holds 0."


def _measurements(facts: Mapping[str, Any]) -> str:
    found = facts["evaluation"]
    if found is None:
        return "Not measured. `unidetox detoxify` without `--no-evaluate`, or `unidetox generate` and `unidetox score`, measure it.\n"
    lines = ["| metric | before | after | difference | n |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in table(found["metrics"])]
    clean = (
        f" Clean text: {found['clean']}; its n counts texts, the others' prompts." if found["clean"] else ""
    )
    return (
        "\n".join(lines) + f"\n\n{verdict(found['metrics'])}\n\n"
        f"Intervals: 95 %, bootstrap by prompt ({found['bootstrap']:,} resamples), differences paired by prompt and seed. "
        f"Prompts: {found['prompts']}; {found['continuations']} continuations of at most {found['max_new_tokens']} tokens each, "
        f"top-p {found['top_p']:g}, {found['runs']} run{'s' if found['runs'] > 1 else ''}. Scorer: {found['scorer']}; toxic is a "
        f"score above {found['threshold']:g}.{clean} Lower is better everywhere; a perplexity that rises is what it"
        " cost.\n"
    )


def _smoke(limit: int | None) -> list[str]:
    if limit is None:
        return []
    return [
        f"A smoke run: made with `--limit {limit}`, at most so many texts and prompts. Its numbers are no result.\n"
    ]


def _limit(facts: Mapping[str, Any]) -> str:
    found = facts["evaluation"]
    if found is None:
        return _UNMEASURED
    return _MEASURED.format(scorer=found["scorer"], prompts=found["prompts"])


def _number(entry: Mapping[str, Any], value: str, low: str, high: str) -> str:
    if entry.get(value) is None:
        return f"none ({entry['reason']})" if entry.get("reason") else "none"
    if entry.get(low) is None:
        return f"{entry[value]:.4g}"
    return f"{entry[value]:.4g} [{entry[low]:.4g}, {entry[high]:.4g}]"


def _rows(values: Mapping[str, Any]) -> str:
    lines = ["| what | value |", "|---|---|"]
    for name, value in values.items():
        if value is not None:
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else f"{value}"
            lines.append(f"| {name.replace('_', ' ')} | {' '.join(text.replace('|', '¦').split())} |")
    return "\n".join(lines) + "\n"
