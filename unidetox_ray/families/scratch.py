"""The pure pieces of training a small model from random weights; the stage `models` runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from unidetox_ray.errors import ModelError
from unidetox_ray.families.base import Family, SpecialIds
from unidetox_ray.schemas import LABELS
from unidetox_ray.settings import ScratchSection

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast


def build_model(family: Family, tokenizer: PreTrainedTokenizerFast, spec: ScratchSection) -> PreTrainedModel:
    """A model of the family with random weights drawn from `spec.seed`, on the CPU in float32.

    ModelError when the heads do not divide the width.
    """
    from transformers import AutoModelForCausalLM

    from unidetox_ray.families.loading import special_ids

    if family.tiny_config is None:
        raise ModelError(
            f"family {family.name!r}: cannot be trained from scratch; give a model folder or hub id"
        )
    if spec.hidden % spec.heads:
        raise ModelError(
            f"scratch: hidden = {spec.hidden} is no multiple of heads = {spec.heads}; choose one that is"
        )
    if (spec.hidden // spec.heads) % 2:
        raise ModelError(
            f"scratch: hidden / heads = {spec.hidden // spec.heads} is odd; rotary positions need an even one"
        )
    config = family.tiny_config(
        len(tokenizer),
        hidden=spec.hidden,
        layers=spec.layers,
        heads=spec.heads,
        max_positions=spec.max_positions,
        ids=special_ids(tokenizer, None),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def pack(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], ids: SpecialIds, *, length: int
) -> list[list[int]]:
    """Training rows of `length` tokens: whole texts after one another, each start token, text, end token.

    A row begins with a text's start token or, so that texts without one are known as well (GPT-2 and Falcon put
    none before a prompt), at the text itself. A text that does not fit goes on in the next row, unless less than a
    quarter of a row is left of it. Where start and end are the same token, one stands between two texts.
    """
    if length < 2:
        raise ModelError(f"length = {length}: a training row needs at least 2 tokens")
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    rows: list[list[int]] = []
    row: list[int] = []
    for text in encoded:
        if not row:
            row = [ids.start] if len(rows) % 2 == 0 else []
        elif row[-1] != ids.start:
            row.append(ids.start)
        row += text
        if ids.eos is not None:
            row.append(ids.eos)
        while len(row) >= length:
            rows.append(row[:length])
            row = row[length:] if len(row) - length >= length / 4 else []
    if len(row) >= 2:
        rows.append(row)
    return rows


def build_classifier(
    tokenizer: PreTrainedTokenizerFast, spec: ScratchSection
) -> BertForSequenceClassification:
    """A small BERT with random weights and the six sigmoid labels of unitary/toxic-bert."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=4 * spec.hidden,
        max_position_embeddings=spec.max_positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        problem_type="multi_label_classification",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return BertForSequenceClassification(config)
