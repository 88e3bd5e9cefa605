"""Training the small toxicity classifier: a BERT with toxic-bert's six sigmoid labels, on a LABELLED table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from unidetox_ray.core.loop import LoopSettings, learning_rate, rows_at
from unidetox_ray.errors import DataError
from unidetox_ray.families.scratch import build_classifier
from unidetox_ray.families.tokenizers import word_pieces
from unidetox_ray.schemas import LABELS
from unidetox_ray.settings import ScratchSection


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over the labels that were annotated.

    logits: (B, 6). labels: (B, 6), NaN = not annotated. Returns the mean over annotated entries, 0 if there is none.
    """
    known = ~labels.isnan()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels.nan_to_num(), reduction="none"
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def area_under_curve(scores: list[float], positives: list[bool]) -> float | None:
    """Probability that a positive outscores a negative, ties half; None without both kinds. (Mann-Whitney U.)"""
    count = sum(positives)
    if count in (0, len(positives)):
        return None
    ranks = pl.Series(scores).rank("average")
    total = float(ranks.filter(pl.Series(positives)).sum())
    return (total - count * (count + 1) / 2) / (count * (len(positives) - count))


def train_classifier(table: pl.DataFrame, spec: ScratchSection, folder: Path, device: str) -> dict[str, Any]:
    """Train on split train, save model and tokenizer to `folder`, measure on split test (else dev).

    Returns plain JSON values: parameters, final_loss, rows and,
    on the held-out rows, `auc` and `accuracy` (at 0.5) of the label toxic, with their number.
    DataError when no row is for training.
    """
    train = table.filter(pl.col("split") == "train")
    if train.height == 0:
        raise DataError(
            f"scorer data: no row of split train; it holds {sorted(table['split'].unique().to_list())}"
        )
    tokenizer = word_pieces(train["text"].to_list(), spec.vocab_size)
    tokenizer.model_max_length = spec.max_positions
    model = build_classifier(tokenizer, spec).to(device)  # type: ignore[arg-type]
    length = min(spec.length, spec.max_positions)
    ids = tokenizer(train["text"].to_list(), truncation=True, max_length=length)["input_ids"]
    labels = _labels(train)
    settings = LoopSettings(
        steps=spec.steps, lr=spec.lr, batch_size=spec.batch_size, seed=spec.seed, schedule="linear"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=0.01)
    model.train()
    loss = torch.zeros(())
    for step in range(spec.steps):
        chosen = rows_at(step, len(ids), settings)
        batch = tokenizer.pad({"input_ids": [ids[row] for row in chosen]}, return_tensors="pt").to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        loss = label_loss(model(**batch).logits.float(), labels[chosen].to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval().to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": float(loss.detach()),
        "rows": train.height,
        "vocabulary": len(tokenizer),
        **_held_out(table, folder),
    }


def _labels(table: pl.DataFrame) -> Tensor:
    """(N, 6) float32, NaN where a label is null."""
    return torch.tensor(table.select(pl.col(LABELS).fill_null(float("nan"))).to_numpy(), dtype=torch.float32)


def _held_out(table: pl.DataFrame, folder: Path) -> dict[str, Any]:
    from unidetox_ray.metrics.classifier import ToxicityClassifier

    rows = table.filter(pl.col("split") == "test", pl.col("toxic").is_not_null())
    if rows.height == 0:
        rows = table.filter(pl.col("split") == "dev", pl.col("toxic").is_not_null())
    if rows.height == 0:
        return {"held_out_rows": 0, "auc": None, "accuracy": None}
    scores = ToxicityClassifier(str(folder)).score(rows["text"].to_list())
    scored = rows.with_columns(score=pl.Series(scores, dtype=pl.Float64))
    failed = scored["score"].null_count()
    scored = scored.drop_nulls("score").with_columns(truth=pl.col("toxic") > 0.5)
    groups = {str(name): part for (name,), part in sorted(scored.group_by("source", maintain_order=True))}
    return {
        "held_out_rows": rows.height,
        "held_out_failed": failed,
        "auc": area_under_curve(scored["score"].to_list(), scored["truth"].to_list()),
        # A source with one class only (Toxic Spans is all toxic) has no AUC of its own; its rows count in "auc".
        "auc_by_source": {
            name: area_under_curve(part["score"].to_list(), part["truth"].to_list())
            for name, part in groups.items()
        },
        "rows_by_source": {name: part.height for name, part in groups.items()},
        "accuracy": float(((scored["score"] > 0.5) == scored["truth"]).mean()) if scored.height else None,  # type: ignore[arg-type]
    }
