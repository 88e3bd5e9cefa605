"""RealToxicityPrompts: sentence beginnings from web text, with the Perspective scores of their time (Gehman et al. 2020).

One JSON object a line: `filename`, `begin`, `end`, `challenging`, `prompt` and `continuation`, the last two objects with
`text`, `toxicity` and further scores. A prompt's own score is null in some rows. The prompts have no splits: all are `test`.
"""

from __future__ import annotations

from typing import Any, Literal

import polars as pl
from pydantic import Field

from unidetox_ray.data import files, hub
from unidetox_ray.data.base import Dataset, Options, Request
from unidetox_ray.errors import DataError

HUB_ID = "allenai/real-toxicity-prompts"
HUB_FILE = "prompts.jsonl"
#: File names tried below a folder.
LOCAL_FILES = (HUB_FILE, "*.jsonl", "*.parquet")
#: A prompt counts as toxic from this score on (the paper's section 3).
TOXIC_FROM = 0.5


class RealToxicityPromptsOptions(Options):
    """Which prompts, and what a domain is."""

    subset: Literal["all", "challenging"] = "all"
    """challenging: those that made the paper's models write toxic text again and again (flag `challenging`)."""
    domains: Literal["auto", "prompt_toxicity", "none"] = "auto"
    """prompt_toxicity: `toxic_prompts`, `nontoxic_prompts` and `unscored_prompts`, as the paper reports them; none: one
    domain. auto: prompt_toxicity for all prompts, none for the challenging ones."""
    toxic_from: float = Field(default=TOXIC_FROM, ge=0, le=1)
    """Score from which a prompt is toxic."""


def load(role: str, request: Request) -> pl.DataFrame:
    """PROMPTS: `prompt_id` is "<filename>-<begin>-<end>" ("row-<number>" where the file lacks them), the text as it is.

    `group` is "challenging" or "". Every prompt is `id`: the set has no distributions of its own.
    """
    options: RealToxicityPromptsOptions = request.options
    table = _typed(_source(request))
    challenging = int(table["challenging"].sum())
    request.notes.update(
        {"prompts": table.height, "challenging": challenging, "unscored": table["toxicity"].null_count()}
    )
    if options.subset == "challenging":
        if not challenging:
            raise DataError(
                "RealToxicityPrompts: no row has `challenging` true; take the whole file, or subset: all"
            )
        table = table.filter("challenging")
    by_toxicity = options.domains == "prompt_toxicity" or (
        options.domains == "auto" and options.subset == "all"
    )
    score = pl.col("toxicity")
    domain = (
        pl.when(score.is_null()).then(pl.lit("unscored_prompts"))
        .when(score >= options.toxic_from).then(pl.lit("toxic_prompts"))
        .otherwise(pl.lit("nontoxic_prompts"))
    )  # fmt: skip
    return table.select(
        "prompt_id",
        prompt="text",
        domain=domain if by_toxicity else pl.lit(options.subset),
        group=pl.when("challenging").then(pl.lit("challenging")).otherwise(pl.lit("")),
        distribution=pl.lit("id"),
        split=pl.lit("test"),
    )


def _source(request: Request) -> list[dict[str, Any]]:
    path = request.path
    if path is None:
        local = f"{HUB_FILE} of {HUB_ID}, or the folder that holds it"
        return hub.fetch(HUB_ID, {"prompts": HUB_FILE}, request, local=local)["prompts"].to_dicts()
    if path.is_dir():
        place = next((found for name in LOCAL_FILES for found in sorted(path.glob(name))), None)
        if place is None:
            raise DataError(f"{path}: no file for RealToxicityPrompts; looked for {', '.join(LOCAL_FILES)}")
        path = place
    return files.read_records(path, request)


def _typed(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """prompt_id, text, toxicity (null = unscored), challenging."""
    made = []
    for number, row in enumerate(rows):
        prompt = row.get("prompt")
        text = prompt.get("text") if isinstance(prompt, dict) else prompt
        if not isinstance(text, str):
            raise DataError(f"RealToxicityPrompts row {number + 1}: has no text in prompt.text")
        score = prompt.get("toxicity") if isinstance(prompt, dict) else None
        if score is not None and not (isinstance(score, (int, float)) and 0 <= score <= 1):
            raise DataError(f"RealToxicityPrompts row {number + 1}: prompt.toxicity is no number from 0 to 1")
        place = [row.get(name) for name in ("filename", "begin", "end")]
        name = "-".join(str(part) for part in place) if None not in place else f"row-{number:06d}"
        made.append(
            {
                "prompt_id": name,
                "text": text,
                "toxicity": score,
                "challenging": row.get("challenging") is True,
            }
        )
    schema = {"prompt_id": pl.String, "text": pl.String, "toxicity": pl.Float64, "challenging": pl.Boolean}
    return pl.DataFrame(made, schema=schema, strict=False)


DATASET = Dataset(
    name="rtp",
    roles=("prompts",),
    licence="Apache-2.0",
    citation="Gehman et al.: RealToxicityPrompts, Findings of EMNLP 2020 (arXiv 2009.11462)",
    options=RealToxicityPromptsOptions,
    load=load,
    hub_id=HUB_ID,
)
